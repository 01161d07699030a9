"""Rung 7, first part: one twin follows the other through a whole run, a step at a time, so that nothing can grow.

JAX trains the run. At every STRIDE-th step torch is put into JAX's state: parameters, what the optimizer keeps, and
the step. From there it takes STRIDE steps on the same batches. At each of them it computes its own loss and gradients,
which are compared, and then takes JAX's gradients in the place of its own. So the two states never differ by more than
the rounding of a few updates, no difference is amplified, and the tolerances are those of single steps, at every step
of the schedule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lmcore.config import Config
from lmcore.optim.schedule import learning_rate
from lmcore.optim.table import OPTIMIZERS
from parity.backends.base import Arrays, Pair, Step
from parity.check.known import (
    are_beyond,
    bias_correction_gap,
    by_kernel,
    corrects_bias,
    orthogonal_within_rounding,
    undecided_signs,
    within_rounding,
)
from parity.check.result import Result, judge
from parity.convert.moments import KINDS, Moments
from parity.difference import Difference, compare_all, difference, update_differences, worst

__all__ = ["in_step"]

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
        left_out = undecided_signs(config.optim, one.grads, one.grad_norm, moments)
        found.undecided += sum(int(mask.sum()) for mask in left_out.values())
        updates = update_differences(params, one.params, other.params, gap, since, left_out)
        _compare(found, step, one, other)
        gradients = [by_kernel(pair, d, one.grads) for d in compare_all(one.grads, other.grads)]
        after = one.params, Moments(step + 1, one.moments)
        asked = False
        if are_beyond("gradients", pair.dtype, gradients):
            gradients, asked = within_rounding(pair, gradients, batch, params, moments, step), True
        if OPTIMIZERS[config.optim.name].rest and are_beyond("update", pair.dtype, updates):
            state = params, moments, step
            updates, asked = orthogonal_within_rounding(pair, updates, batch, lr, one.grads, *state, since), True
        if asked:  # both twins, in another state
            pair.jax.load(*after, step + 1)
        if asked or left_out:
            since = STRIDE
        found.gradients.append(_largest(gradients, step))
        found.updates.append(_largest(updates, step))
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


def _compare(found: Followed, step: int, one: Step, other: Step) -> None:
    """Add a step's loss, gradient norm, and what the optimizers keep."""
    scalars = [difference("loss", one.loss, other.loss), difference("gradient norm", one.grad_norm, other.grad_norm)]
    found.losses.append(_largest(scalars, step))
    for kind, name in KINDS.items():
        if kind in one.moments or kind in other.moments:
            compared = compare_all(one.moments.get(kind, {}), other.moments.get(kind, {}))
            found.kept.setdefault(name, []).append(_largest(compared, step))


def _largest(differences: Sequence[Difference], step: int) -> Difference:
    largest = worst(differences)
    return replace(largest, name=f"{largest.name} (step {step + 1})")
