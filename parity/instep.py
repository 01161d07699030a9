"""Rung 7, first part: one twin follows the other through a whole run, a step at a time, so that nothing can grow.

JAX trains the run. At every STRIDE-th step torch is put into JAX's state: parameters, what the optimizer keeps, and
the step. From there it takes STRIDE steps on the same batches. At each of them it computes its own loss and gradients,
which are compared, and then takes JAX's gradients in the place of its own. So the two states never differ by more than
the rounding of a few updates, no difference is amplified, and the tolerances are those of single steps, at every step
of the schedule.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lmcore.config import Config
from lmcore.schedule import learning_rate
from parity.difference import Difference, compare_all, difference, worst
from parity.known import are_beyond, bias_correction_gap, by_kernel, corrects_bias, undecided_signs, within_rounding
from parity.moments import KINDS, Moments
from parity.result import Result, judge
from parity.twins import Arrays, Pair, Step

__all__ = ["in_step", "update_differences"]

STRIDE = 5
"""Steps that torch takes from each of JAX's states."""


@dataclass
class Followed:
    """What the comparisons of all steps found: the largest difference of each step, by what was compared."""

    losses: list[Difference] = field(default_factory=list)
    gradients: list[Difference] = field(default_factory=list)
    updates: list[Difference] = field(default_factory=list)
    kept: dict[str, list[Difference]] = field(default_factory=dict)
    undecided: int = 0


def in_step(pair: Pair, config: Config, batches: Sequence[np.ndarray]) -> Iterator[Result]:
    """Compare every step of the run that `config` describes, from JAX's own states.

    Args:
        pair: both twins.
        config: its schedule and length.
        batches: of all steps, each B T1.
    """
    found = Followed()
    pair.jax.load(pair.start)
    params, moments = pair.start, None
    gap: Arrays = {}
    since = STRIDE
    for step, batch in enumerate(batches):
        if since == STRIDE:
            pair.torch.load(params, moments, step)
            gap, since = {name: np.zeros(value.shape) for name, value in params.items()}, 0
        lr = learning_rate(config, step)
        one = pair.jax.step(batch, lr)
        other = pair.torch.step(batch, lr, one.grads)
        gap |= {n: gap[n] + lr * change for n, change in bias_correction_gap(pair, one, step + 1).items()}
        since += 1
        if _compare(found, pair, step, params, moments, (one, other), gap, since):
            since = STRIDE
        gradients = [by_kernel(pair, d, one.grads) for d in compare_all(one.grads, other.grads)]
        after = one.params, Moments(step + 1, one.moments)
        if are_beyond(pair.dtype, gradients):
            gradients = within_rounding(pair, gradients, batch, params, moments, step)
            pair.jax.load(*after, step + 1)  # both twins were asked elsewhere
            since = STRIDE
        found.gradients.append(_largest(gradients, step))
        params, moments = after
    what, dtype = f"in step, {len(batches)} steps: ", pair.dtype
    yield judge(7, f"{what}losses and norms", dtype, found.losses, "logits")
    yield judge(7, f"{what}gradients", dtype, found.gradients, "gradients")
    note = "relative to the change of a tensor"
    if corrects_bias(config.optim):
        note += "; but for optax's 1 − β^t"
    if found.undecided:
        note += f"; {found.undecided} signs of sums that cancel to rounding left out"
    yield judge(7, f"{what}updates", dtype, found.updates, "update", note)
    for name, differences in found.kept.items():
        yield judge(7, f"{what}{name}", dtype, differences, "update")


def _compare(
    found: Followed,
    pair: Pair,
    step: int,
    params: Arrays,
    moments: Moments | None,
    steps: tuple[Step, Step],
    gap: Arrays,
    since: int,
) -> bool:
    """Add what one step shows, but for its gradients; returns whether some updates could be either of two."""
    one, other = steps
    scalars = [difference("loss", one.loss, other.loss), difference("gradient norm", one.grad_norm, other.grad_norm)]
    found.losses.append(_largest(scalars, step))
    left_out = undecided_signs(pair.config.optim, one.grads, one.grad_norm, moments)
    found.undecided += sum(int(mask.sum()) for mask in left_out.values())
    updates = update_differences(params, one.params, other.params, gap, since, left_out)
    found.updates.append(_largest(updates, step))
    for kind, name in KINDS.items():
        if kind in one.moments or kind in other.moments:
            compared = compare_all(one.moments.get(kind, {}), other.moments.get(kind, {}))
            found.kept.setdefault(name, []).append(_largest(compared, step))
    return bool(left_out)


def _largest(differences: Sequence[Difference], step: int) -> Difference:
    largest = worst(differences)
    return replace(largest, name=f"{largest.name} (step {step + 1})")


def update_differences(
    before: Arrays, one: Arrays, other: Arrays, gap: Arrays, steps: int, left_out: Arrays
) -> list[Difference]:
    """Compare what an update changed, relative to the largest change of each parameter.

    Args:
        before: parameters before the update.
        one: JAX's after it.
        other: torch's after it.
        gap: known differences, to be added to JAX's.
        steps: updates since both were in the same state. Each rounds the parameter once in either twin, which may add
            one ulp to the difference.
        left_out: where the update is undecided, by parameter; those values are not compared.
    """
    found = []
    for name, start in before.items():
        left, right = one[name] + gap.get(name, 0.0), other[name].astype(np.float64)
        if name in left_out:
            right = np.where(left_out[name], left, right)
        raw = difference(name, left, right)
        if not math.isfinite(raw.max_abs):
            found.append(raw)
            continue
        rounding = steps * np.finfo(start.dtype).eps * np.abs(left)
        excess = np.maximum(np.abs(left - right) - rounding, 0.0)
        where = np.unravel_index(int(np.argmax(excess)), excess.shape)
        largest = float(np.abs(one[name].astype(np.float64) - start).max())
        beyond = float(excess[where])
        relative = 0.0 if beyond == 0 else beyond / largest if largest > 0 else math.inf
        index = tuple(int(i) for i in where)
        found.append(replace(raw, max_rel=relative, where=index, left=float(left[where]), right=float(right[where])))
    return found
