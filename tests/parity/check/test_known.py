"""Known differences are computed for the values at hand, and nothing else is excused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lmcore.config import OptimConfig
from parity.backends.base import Pair, Step
from parity.check.known import (
    are_beyond,
    bias_correction_gap,
    by_kernel,
    correction_name,
    orthogonal_within_rounding,
    undecided_signs,
    within_rounding,
)
from parity.check.rungs.base import training_batches
from parity.convert.moments import Moments
from parity.difference import compare_all, update_differences


def test_a_gradient_that_cancels_is_measured_by_one_ulp_and_a_wrong_one_is_not_excused(
    tiny_pair: Callable[..., Pair],
):
    pair = tiny_pair(train={"precision": "float32"})
    batch = training_batches(pair, 1)[0]
    step = pair.loaded(pair.reference).step(batch, 0.01)
    noise = 3e-4  # relative: above the tolerance, and far above what one ulp makes here
    wrong = {name: grad * (1 + noise) for name, grad in step.grads.items()}
    found = compare_all(step.grads, wrong)
    assert are_beyond("gradients", "float32", found)
    assert within_rounding(pair, found, batch, pair.start) == found, "not explained by rounding"
    assert not are_beyond("gradients", "float32", compare_all(step.grads, step.grads))


def test_a_key_bias_without_rotation_is_measured_by_its_kernel(tiny_pair: Callable[..., Pair]):
    name = "layers.0.self_attn.k_proj.bias"
    for position, excused in (("none", True), ("rope", False)):
        pair = tiny_pair(model={"position": position, "bias": True})
        grads = pair.loaded(pair.reference).step(training_batches(pair, 1)[0], 0.01).grads
        largest = float(np.abs(grads[name]).max())
        kernel = float(np.abs(grads[name.replace("bias", "kernel")]).max())
        assert (largest < 1e-12 * kernel) == excused, "softmax is invariant to what all scores share"
        found = {d.name: d for d in compare_all(grads, {n: 2 * grad for n, grad in grads.items()})}
        measured = {n: by_kernel(pair, d, grads) for n, d in found.items()}
        assert measured[name].max_rel == (pytest.approx(largest / kernel) if excused else 0.5)
        assert all(measured[n] == found[n] for n in found if n != name)


def test_only_a_finite_difference_is_beyond_its_tolerance():
    def beyond(dtype: str, right: float) -> bool:
        return are_beyond("gradients", dtype, compare_all({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": right}))

    assert beyond("float32", 1 + 2e-4)
    assert not beyond("float32", 1 + 0.5e-4)
    assert not beyond("float32", np.nan), "which no rounding explains"
    assert not beyond("bfloat16", 2.0), "which has no tolerance"


def test_a_rounded_bias_correction_is_the_difference_of_both_directions(tiny_pair: Callable[..., Pair]):
    """Moments 0.2 and 0.04: corrected by 0.5 and 1 they give 0.4 / 0.2, by 1 and 0.25 they give 0.2 / 0.4."""
    pair = tiny_pair(train={"precision": "float32"}, optim={"beta1": 0.5, "beta2": 0.75, "eps": 1e-12})
    assert correction_name(pair) == ""
    moments = {kind: {"w": np.full(3, value, np.float32)} for kind, value in (("mean", 0.2), ("square", 0.04))}
    step = Step(1.0, 1.0, {}, {"w": np.zeros(3, np.float32)}, moments)
    assert bias_correction_gap(pair, step, 1) == {}
    corrections = {0.5: (0.5, 1.0), 0.75: (1.0, 0.25)}
    for twin, side in zip(pair, (0, 1), strict=True):
        twin.bias_correction = lambda beta, count, dtype, side=side: corrections[beta][side]
    pair.port.rounded_correction = "its 1 − β^t"
    assert correction_name(pair) == "its 1 − β^t"
    np.testing.assert_allclose(bias_correction_gap(pair, step, 1)["w"], 1.5, rtol=1e-6)
    double = replace(step, params={"w": np.zeros(3)})
    assert bias_correction_gap(pair, double, 1) == {}, "in float64 nothing is rounded to less"
    plain = tiny_pair(optim={"name": "sgd"})
    plain.port.rounded_correction = "its 1 − β^t"
    assert correction_name(plain) == ""


def test_a_sign_is_undecided_where_both_terms_cancel():
    lion = OptimConfig(name="lion", beta1=0.9, clip=0.0)
    before = Moments(1, {"mean": {"w": np.array([1.0, 1.0, 0.0, 1.0]), "b": np.array([1.0])}})
    grads = {"w": np.array([-9.0, -8.9, 0.0, 1.0]), "b": np.array([1.0])}
    found = undecided_signs(lion, grads, 1.0, before)
    assert list(found) == ["w"]
    assert found["w"].tolist() == [True, False, False, False]
    assert undecided_signs(replace(lion, clip=1.0), grads, 2.0, before) == {}, "the clip halves the gradient"
    assert undecided_signs(lion, grads, 1.0, None) == {}
    assert undecided_signs(replace(lion, name="adamw"), grads, 1.0, before) == {}


def test_an_update_by_muon_is_excused_within_its_response_and_no_other(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair(train={"precision": "float32"}, optim={"name": "muon"})
    batch = training_batches(pair, 1)[0]
    step = pair.loaded(pair.reference).step(batch, 0.01)
    found = [replace(d, max_rel=1.1e-5) for d in update_differences(pair.start, step.params, step.params, {}, 1, {})]
    arguments = (batch, 0.01, step.grads, pair.start, None, 0)
    measured = {d.name: d for d in orthogonal_within_rounding(pair, found, *arguments, steps=1000)}
    excused = {name for name, d in measured.items() if d.max_rel == 1e-5}
    assert excused == {name for name in measured if name.startswith("layers.") and name.endswith("proj.kernel")}
    assert all("where one ulp in what is orthogonalized makes" in measured[name].note for name in excused)
    wrong = [replace(d, max_rel=10.0) for d in found]
    assert orthogonal_within_rounding(pair, wrong, *arguments, steps=1) == wrong
