"""Known differences: where two correct implementations may differ, computed and subtracted.

None of them is a looser tolerance: each is computed for the values at hand, and what remains is held to the ordinary
tolerance. docs/parity.md lists them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lmcore.config import OptimConfig
from lmcore.optim.schedule import learning_rate
from lmcore.optim.table import OPTIMIZERS, takes_muon
from parity.arrays import Arrays, moved_by_one_ulp
from parity.backends.base import Pair, Step
from parity.convert.moments import Moments
from parity.difference import Difference, Kind, compare_all, tolerance, update_differences

__all__ = [
    "are_beyond",
    "bias_correction_gap",
    "by_kernel",
    "correction_name",
    "orthogonal_within_rounding",
    "undecided_signs",
    "within_rounding",
]

DRAWS = 3
"""Number of moves by one ulp that show, in each twin, how rounding changes a gradient."""
RESPONSES = 4.0
"""A gradient, or an update by Muon, may differ by this many times the largest such response: rounding happens in every
operation, not only in the weights. Over the calibration's runs the ratio was at most 1.7."""


def by_kernel(pair: Pair, difference: Difference, grads: Arrays) -> Difference:
    """Measure the difference of a key bias's gradient, without rotation or norm, relative to its kernel's gradient.

    Such a bias adds the same to all scores of a query, to which softmax is invariant: its gradient is zero, but for
    rounding.

    Args:
        pair: both twins.
        difference: of one gradient; any but that of such a bias is returned unchanged.
        grads: all gradients of one twin.
    """
    model = pair.config.model
    if not difference.name.endswith("k_proj.bias") or model.position == "rope" or model.qk_norm:
        return difference
    scale = np.abs(grads[difference.name.replace(".bias", ".kernel")]).max()
    return replace(difference, max_rel=float(difference.max_abs / scale))


def are_beyond(kind: Kind, dtype: str, differences: Sequence[Difference]) -> bool:
    """Return whether a finite difference is beyond its tolerance.

    Args:
        kind: kind of the values, such as gradients.
        dtype: precision of the twins.
        differences: of the values; their relative size decides.
    """
    allowed = tolerance(kind, dtype)
    return allowed is not None and any(allowed < d.max_rel < math.inf for d in differences)


def within_rounding(
    pair: Pair,
    differences: Sequence[Difference],
    batch: np.ndarray,
    params: Arrays,
    moments: Moments | None = None,
    step: int = 0,
) -> list[Difference]:
    """Measure gradients beyond the tolerance by their response to a change of one ulp in the weights.

    Softmax's backward pass subtracts from each weight's gradient their weighted mean. Where the values are nearly the
    same at all positions, as early in training, the two cancel, and little but their rounding is left in the gradients
    of queries and keys. Each twin measures how large that is: by its gradient with every weight moved by one ulp.

    Args:
        pair: both twins; they are left in another state.
        differences: of all gradients.
        batch: token ids of the step, B T1.
        params: the parameters before the step.
        moments: the optimizer's state before the step; None for a new one.
        step: number of updates before the step.

    Returns:
        The same differences; one beyond the tolerance but within `RESPONSES` of these responses gets a note that says
        so, and a `max_rel` that is the tolerance.
    """
    allowed = tolerance("gradients", pair.dtype)
    assert allowed is not None
    lr, responses = learning_rate(pair.config, step), dict.fromkeys((d.name for d in differences), 0.0)
    for twin in pair:
        twin.load(params, moments, step)
        unmoved = twin.step(batch, lr).grads
        for draw in range(DRAWS):
            twin.load(moved_by_one_ulp(params, draw), moments, step)
            for d in (by_kernel(pair, d, unmoved) for d in compare_all(unmoved, twin.step(batch, lr).grads)):
                responses[d.name] = max(responses[d.name], d.max_rel)
    return _explained(differences, responses, allowed, "in the weights")


def _explained(
    differences: Sequence[Difference], responses: dict[str, float], allowed: float, where: str
) -> list[Difference]:
    """Reduce to the tolerance all differences beyond it that are within `RESPONSES` times these responses."""
    return [
        replace(d, max_rel=allowed, note=f"{d.max_rel:.1e}, where one ulp {where} makes {responses[d.name]:.1e}")
        if allowed < d.max_rel <= RESPONSES * responses[d.name]
        else d
        for d in differences
    ]


def orthogonal_within_rounding(
    pair: Pair,
    differences: Sequence[Difference],
    batch: np.ndarray,
    lr: float,
    grads: Arrays,
    params: Arrays,
    moments: Moments | None,
    step: int,
    steps: int,
) -> list[Difference]:
    """Measure Muon's updates beyond the tolerance by their response to a change of one ulp in gradients and momentum.

    Five Newton–Schulz iterations bring all singular values near one: they multiply a small one by 3.4445 each time,
    485 in all, and the rounding in its direction with it. The more nearly a gradient is of low rank, as early in
    training, the larger that is relative to the update. Each twin measures how large: by its update with the gradients
    and the momentum moved by one ulp.

    Args:
        pair: both twins; they are left in another state.
        differences: of all updates.
        batch: token ids of the step, B T1.
        lr: learning rate of the step.
        grads: gradients of the step.
        params: the parameters before the step.
        moments: the optimizer's state before the step; None for a new one.
        step: number of updates before the step.
        steps: updates since both twins were in the same state; the responses of all of them add up.

    Returns:
        As `within_rounding`; only matrices that Muon trains are measured in this way.
    """
    allowed = tolerance("update", pair.dtype)
    assert allowed is not None
    responses = dict.fromkeys((d.name for d in differences), 0.0)
    for twin in pair:
        twin.load(params, moments, step)
        unmoved = twin.step(batch, lr, grads).params
        for draw in range(DRAWS):
            moved = moments and replace(
                moments, arrays={kind: moved_by_one_ulp(arrays, draw) for kind, arrays in moments.in_memory().items()}
            )
            twin.load(params, moved, step)
            after = twin.step(batch, lr, moved_by_one_ulp(grads, draw)).params
            for d in update_differences(params, unmoved, after, {}, 1, {}):
                if takes_muon(d.name, params[d.name].ndim):
                    responses[d.name] = max(responses[d.name], steps * d.max_rel)
    return _explained(differences, responses, allowed, "in what is orthogonalized")


def correction_name(pair: Pair) -> str:
    """Return the name of what rounds 1 − β^t; empty where nothing does, or the optimizer corrects no bias."""
    if not OPTIMIZERS[pair.config.optim.name].corrects_bias:
        return ""
    return ", ".join(twin.rounded_correction for twin in pair if twin.rounded_correction)


def bias_correction_gap(pair: Pair, step: Step, count: int) -> Arrays:
    """Return by how much the directions of both twins' updates differ because one of them rounds 1 − β^t.

    Each backend computes it as its optimizer does: optax in JAX's default float type, torch in double.

    Args:
        pair: both twins.
        step: the reference's step.
        count: number of the step, from 1.

    Returns:
        The gap by parameter, from the reference's own moments; times the learning rate, it is added to its parameters.
    """
    optim, dtype = pair.config.optim, step.params[next(iter(step.params))].dtype
    if not correction_name(pair) or dtype == np.float64:  # in the float64 mode, all compute in float64
        return {}

    def direction(name: str, first: float, second: float) -> np.ndarray:
        mean, square = (step.moments[kind][name].astype(np.float64) for kind in ("mean", "square"))
        return (mean / first) / (np.sqrt(square / second) + optim.eps)

    betas = optim.beta1, optim.beta2
    reference, port = ([twin.bias_correction(beta, count, dtype) for beta in betas] for twin in pair)
    return {name: direction(name, *reference) - direction(name, *port) for name in step.moments["mean"]}


def undecided_signs(optim: OptimConfig, grads: Arrays, grad_norm: float, before: Moments | None) -> Arrays:
    """Return where Lion's direction, the sign of β1 · m + (1 − β1) · g, is undecided: the two cancel but for rounding.

    Args:
        optim: optimizer settings of the run.
        grads: gradients of the update, before the clip.
        grad_norm: their global norm.
        before: the optimizer's state before the step; None for a new one, in which nothing cancels.

    Returns:
        By parameter, True where the sum is less than a few roundings of its terms; only parameters with such values.
    """
    if optim.name != "lion" or before is None:
        return {}
    scale = min(1.0, optim.clip / (grad_norm + 1e-6)) if optim.clip else 1.0
    undecided = {}
    for name, grad in grads.items():
        mean = optim.beta1 * before.arrays["mean"][name].astype(np.float64)
        added = (1 - optim.beta1) * scale * grad.astype(np.float64)
        terms = np.abs(mean) + np.abs(added)
        mask = (np.abs(mean + added) <= 8 * np.finfo(grad.dtype).eps * terms) & (terms > 0)
        if mask.any():
            undecided[name] = mask
    return undecided
