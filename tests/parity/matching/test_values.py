"""Equal arrays are found in whatever layout, and constants say nothing."""

import numpy as np

from parity.matching.leaves import leaves_of
from parity.matching.values import equal_leaves

RNG = np.random.default_rng(0)


def equal(jax: dict, torch: dict):
    sides = [leaves_of({n: a.shape for n, a in side.items()}, {}, {}) for side in (jax, torch)]
    return equal_leaves(*sides, jax, torch)


def test_a_square_is_told_from_its_transpose():
    one, other = RNG.standard_normal((2, 5, 5)).astype(np.float32)
    found = equal({"a": one, "b": other}, {"x": other, "y": one.T})
    assert found == {(0, 1): ((("transpose", (1, 0)),),), (1, 0): ((),)}


def test_values_reach_layouts_that_are_not_usual():
    array = RNG.standard_normal((2, 3, 4))
    assert list(equal({"a": array}, {"x": array.transpose(2, 0, 1).reshape(8, 3)})) == [(0, 0)]


def test_what_is_nearly_equal_or_constant_is_not_found():
    array = RNG.standard_normal((4, 3))
    assert equal({"a": array}, {"x": array.T * (1 + 1e-5)}) == {}
    assert list(equal({"a": array}, {"x": array.T * (1 + 1e-8)})) == [(0, 0)]
    assert equal({"a": np.zeros(3)}, {"x": np.zeros(3)}) == {}
