"""Differences between arrays of any framework, and the tolerances they are held to."""

import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from parity.difference import TOLERANCES, compare_all, difference, tolerance, update_differences, worst


def test_a_difference_is_relative_to_the_largest_value_and_names_its_place():
    found = difference("x", np.array([[1.0, -8.0], [2.0, 4.0]]), np.array([[1.0, -8.0], [2.5, 4.0]]))
    assert (found.max_abs, found.max_rel, found.where) == (0.5, 0.5 / 8, (1, 0))
    assert (found.left, found.right, found.place) == (2.0, 2.5, "x[1, 0]")
    assert found.within(0.0625)
    assert not found.within(0.0624)


def test_equal_arrays_do_not_differ_and_zero_against_zero_is_no_division():
    assert difference("x", np.zeros(3), np.zeros(3)).max_rel == 0
    assert difference("x", np.empty((0, 2)), np.empty((0, 2))).max_rel == 0
    assert difference("x", 1e-300, 0.0).max_rel == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_far_apart(bad: float):
    found = difference("x", np.array([1.0, bad]), np.array([1.0, bad]))
    assert found.max_rel == math.inf
    assert not found.within(1e300)
    assert found.where == (1,)


def test_a_logit_that_is_not_allowed_in_either_is_no_difference():
    logits = np.array([1.0, -math.inf, 2.0])
    assert difference("x", logits, logits).max_rel == 0
    found = difference("x", logits, np.array([1.0, -math.inf, 3.0]))
    assert (found.max_rel, found.where) == (pytest.approx(1 / 3), (2,))
    assert difference("x", logits, np.array([1.0, 0.0, 2.0])).max_rel == math.inf
    assert difference("x", logits, -logits).max_rel == math.inf


def test_other_shapes_and_missing_names_are_infinitely_far_apart():
    assert not difference("x", np.ones((2, 1)), np.ones((1, 2))).within(1e300)
    found = compare_all({"a": 1.0, "b": 1.0}, {"b": 1.0, "c": 1.0})
    assert {d.name: d.max_rel for d in found} == {"b": 0.0, "a": math.inf, "c": math.inf}
    assert worst(found).name in ("a", "c")


def test_every_float_type_of_every_framework_is_compared():
    value = [1.0, 1.5, -2.25]
    arrays = [np.array(value), jnp.array(value), torch.tensor(value, requires_grad=True)]
    arrays += [np.array(value, ml_dtypes.bfloat16), jnp.array(value, jnp.bfloat16), torch.tensor(value).bfloat16()]
    assert {difference("x", a, b).max_abs for a in arrays for b in arrays} == {0.0}
    assert {difference("x", a, np.array([1.0, 1.5, -2.0])).max_abs for a in arrays} == {0.25}


def test_both_parts_of_complex_values_are_compared():
    value = np.array([1 + 2j, 3 - 4j])
    sides = [value, jnp.array(value), torch.tensor(value), torch.tensor(value).conj().conj()]
    assert {difference("x", a, b).max_abs for a in sides for b in sides} == {0.0}
    assert difference("x", value, torch.tensor(value).conj()).max_abs == 8
    assert difference("x", value.real, value).max_rel == math.inf


def test_the_tolerances_are_those_of_the_contract():
    assert TOLERANCES == {
        "logits": {"float64": 1e-12, "float32": 1e-5},
        "gradients": {"float64": 1e-11, "float32": 1e-4},
        "update": {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-5},
    }
    assert tolerance("logits", "bfloat16") is None


def updated(**values: float) -> dict[str, np.ndarray]:
    return {name: np.array([value, 1.0]) for name, value in values.items()}


def test_an_update_is_relative_to_the_change_of_its_tensor():
    before, one, other = updated(w=1.0), updated(w=1.5), updated(w=1.5 + 1e-3)
    (found,) = update_differences(before, one, other, {}, 1, {})
    assert found.max_rel == pytest.approx(1e-3 / 0.5, rel=1e-6)
    assert found.where == (0,)
    (found,) = update_differences(before, one, other, {"w": np.array([1e-3, 0.0])}, 1, {})
    assert found.max_rel == pytest.approx(0, abs=1e-12), "the known gap is no difference"
    (found,) = update_differences(before, one, other, {}, 1, {"w": np.array([True, False])})
    assert found.max_rel == 0, "an undecided value is not compared"


def test_each_step_may_round_a_parameter_by_one_ulp():
    ulp = np.finfo(np.float64).eps
    before, one, other = updated(w=1.0), updated(w=1.0 + 8 * ulp), updated(w=1.0 + 11 * ulp)
    assert [update_differences(before, one, other, {}, steps, {})[0].max_rel > 0 for steps in (2, 3)] == [True, False]
    (found,) = update_differences(before, before, updated(w=1.5), {}, 1, {})
    assert found.max_rel == math.inf, "a parameter that only the port changed"
    (found,) = update_differences(before, one, updated(w=math.nan), {}, 1, {})
    assert found.place == f"w is {1 + 8 * ulp} against nan"
