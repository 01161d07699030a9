"""Rung 7, first part: the port follows the reference through a run, step by step, so that no difference can grow.

The reference trains the run. At every STRIDE-th step the port is loaded with the reference's parameters, optimizer
state and step. From there it takes STRIDE steps on the same batches. At each of them it computes its own loss and
gradients, which are compared, and then updates with the reference's gradients in place of its own. So the two
states never differ by more than the rounding of a few updates, no difference is amplified, and the tolerances are those
of single steps, at every step of the schedule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lmcore.config import Config
from lmcore.optim.schedule import learning_rate
from lmcore.optim.table import OPTIMIZERS
from parity.arrays import Arrays
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
from parity.check.result import Result, judge
from parity.convert.moments import KINDS, Moments
from parity.difference import Difference, compare_all, difference, update_differences, worst

__all__ = ["in_step"]

STRIDE = 5
"""Number of steps that the port takes from each of the reference's states."""


@dataclass
class Followed:
    """The largest difference of each step, by what was compared."""

    losses: list[Difference] = field(default_factory=list)
    gradients: list[Difference] = field(default_factory=list)
    updates: list[Difference] = field(default_factory=list)
    moments: dict[str, list[Difference]] = field(default_factory=dict)
    undecided: int = 0
    """Number of signs that were left out, over all steps."""


def in_step(pair: Pair, config: Config, batches: Sequence[np.ndarray]) -> Iterator[Result]:
    """Compare every step of the run that `config` describes, from the reference's own states.

    Args:
        pair: both twins.
        config: of the run; gives its schedule and length.
        batches: token ids of each step, B T1 each.
    """
    followed = _follow(pair, config, batches)
    what, dtype = f"in step, {len(batches)} steps: ", pair.dtype
    yield judge(7, f"{what}losses and norms", dtype, followed.losses, "logits")
    yield judge(7, f"{what}gradients", dtype, followed.gradients, "gradients")
    note = "relative to the change of a tensor"
    if rounded := correction_name(pair):
        note += f"; but for {rounded}"
    if followed.undecided:
        note += f"; {followed.undecided} signs of sums that cancel to rounding left out"
    yield judge(7, f"{what}updates", dtype, followed.updates, "update", note)
    for name, differences in followed.moments.items():
        yield judge(7, f"{what}{name}", dtype, differences, "update")


def _follow(pair: Pair, config: Config, batches: Sequence[np.ndarray]) -> Followed:
    """Train the reference, and let the port follow it step by step."""
    followed = Followed()
    pair.reference.load(pair.start)
    params, moments = pair.start, None
    gap: Arrays = {}
    since_load = STRIDE
    for step, batch in enumerate(batches):
        if since_load == STRIDE:
            pair.port.load(params, moments, step)
            gap, since_load = {name: np.zeros(value.shape) for name, value in params.items()}, 0
        lr = learning_rate(config, step)
        one = pair.reference.step(batch, lr)
        other = pair.port.step(batch, lr, one.grads)
        gap |= {n: gap[n] + lr * change for n, change in bias_correction_gap(pair, one, step + 1).items()}
        since_load += 1
        left_out = undecided_signs(config.optim, one.grads, one.grad_norm, moments)
        followed.undecided += sum(int(mask.sum()) for mask in left_out.values())
        updates = update_differences(params, one.params, other.params, gap, since_load, left_out)
        _compare(followed, step, one, other)
        gradients = [by_kernel(pair, d, one.grads) for d in compare_all(one.grads, other.grads)]
        after = one.params, Moments(step + 1, one.moments)
        reloaded = False
        if are_beyond("gradients", pair.dtype, gradients):
            gradients, reloaded = within_rounding(pair, gradients, batch, params, moments, step), True
        if OPTIMIZERS[config.optim.name].rest and are_beyond("update", pair.dtype, updates):
            state = params, moments, step
            updates, reloaded = (
                orthogonal_within_rounding(pair, updates, batch, lr, one.grads, *state, since_load),
                True,
            )
        if reloaded:  # both twins hold another state now
            pair.reference.load(*after, step + 1)
        if reloaded or left_out:
            since_load = STRIDE
        followed.gradients.append(_largest(gradients, step))
        followed.updates.append(_largest(updates, step))
        params, moments = after
    return followed


def _compare(followed: Followed, step: int, one: Step, other: Step) -> None:
    """Add the differences of a step's loss, gradient norm, and optimizer state."""
    scalars = [difference("loss", one.loss, other.loss), difference("gradient norm", one.grad_norm, other.grad_norm)]
    followed.losses.append(_largest(scalars, step))
    for kind, name in KINDS.items():
        if kind in one.moments or kind in other.moments:
            compared = compare_all(one.moments.get(kind, {}), other.moments.get(kind, {}))
            followed.moments.setdefault(name, []).append(_largest(compared, step))


def _largest(differences: Sequence[Difference], step: int) -> Difference:
    largest = worst(differences)
    return replace(largest, name=f"{largest.name} (step {step + 1})")
