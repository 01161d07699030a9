"""Rung 10: save, restore and resume, in each twin and from one to the other.

A run that resumes without its optimizer state, or with a wrong one, still trains, only a little worse. So each twin is
stopped in the middle of a run and restored from its own files: from there it must compute the same bits as the unbroken
run. Then its files are converted, and the other twin takes the next step.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmcore.optim.schedule import learning_rate
from lmcore.optim.table import OPTIMIZERS
from lmcore.run.checkpoints import Checkpoint
from parity.arrays import Arrays
from parity.backends.base import Pair, Step, Twin
from parity.check.known import are_beyond, bias_correction_gap, orthogonal_within_rounding, undecided_signs
from parity.check.result import Result, identical, judge
from parity.check.rungs.base import Options, training_batches
from parity.convert.moments import Moments
from parity.convert.states import read_state, write_state
from parity.difference import Difference, compare_all, update_differences

__all__ = ["restart"]

BEFORE, AFTER = 2, 2
"""Number of steps before the checkpoint, and after it."""


def restart(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 10: compare restored runs with unbroken ones."""
    batches = training_batches(pair, BEFORE + AFTER)
    for twin, other in ((pair.reference, pair.port), (pair.port, pair.reference)):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Checkpoint(Path(folder), twin.backend.framework, BEFORE, None)
            twin.load(pair.start)
            before = _steps(pair, twin, batches, 0, BEFORE)[-1]
            twin.engine.save(checkpoint.state)()
            unbroken = _steps(pair, twin, batches, BEFORE, AFTER)
            twin.load(pair.start)
            twin.engine.restore(checkpoint.state)
            restored = _steps(pair, twin, batches, BEFORE, AFTER)
            yield _same_bits(pair, twin, unbroken, restored)
            state = read_state(checkpoint, pair.config).to(other.backend.side, pair.config)
            converted = Path(folder) / "converted"
            write_state(converted, state, pair.config)()
            other.load(pair.start)
            other.engine.restore(converted)
            yield from _across(pair, twin, other, (before, unbroken[0]), batches)


def _steps(pair: Pair, twin: Twin, batches: list[np.ndarray], first: int, count: int) -> list[Step]:
    return [twin.step(batches[i], learning_rate(pair.config, i)) for i in range(first, first + count)]


def _same_bits(pair: Pair, twin: Twin, unbroken: list[Step], restored: list[Step]) -> Result:
    differences: list[Difference] = []
    for number, (one, other) in enumerate(zip(unbroken, restored, strict=True), start=BEFORE + 1):
        differences.append(identical(f"loss (step {number})", np.array(one.loss), np.array(other.loss)))
        for left, right in ((one.grads, other.grads), (one.params, other.params)):
            differences += [identical(f"{name} (step {number})", left[name], right[name]) for name in left]
        for kind, arrays in one.moments.items():
            differences += [
                identical(f"{kind} of {n} (step {number})", a, other.moments[kind][n]) for n, a in arrays.items()
            ]
    what = f"{twin.backend.label}, restored, against unbroken"
    return judge(10, what, pair.dtype, differences, 0.0 if pair.on_cpu(twin) else "update")


def _across(
    pair: Pair, twin: Twin, other: Twin, steps: tuple[Step, Step], batches: list[np.ndarray]
) -> Iterator[Result]:
    """Compare the other twin's next step from the converted checkpoint, with this twin's gradients in place of its own.

    Args:
        pair: both twins.
        twin: the one that wrote the checkpoint.
        other: the one that was restored from it after conversion.
        steps: this twin's last step before the checkpoint, and its first after it.
        batches: token ids of each step, B T1 each.
    """
    before, own = steps
    lr = learning_rate(pair.config, BEFORE)
    across = other.step(batches[BEFORE], lr, own.grads)
    what = f"{twin.backend.label} → {other.backend.label}, converted: "
    yield judge(10, f"{what}gradients", pair.dtype, compare_all(own.grads, across.grads), "gradients")
    reference, port = (own, across) if twin is pair.reference else (across, own)
    gap: Arrays = {n: lr * change for n, change in bias_correction_gap(pair, reference, BEFORE + 1).items()}
    left_out = undecided_signs(pair.config.optim, own.grads, own.grad_norm, Moments(BEFORE, before.moments))
    updates = update_differences(before.params, reference.params, port.params, gap, 1, left_out)
    if OPTIMIZERS[pair.config.optim.name].rest and are_beyond("update", pair.dtype, updates):
        state = before.params, Moments(BEFORE, before.moments), BEFORE
        updates = orthogonal_within_rounding(pair, updates, batches[BEFORE], lr, own.grads, *state, 1)
    for kind, arrays in own.moments.items():
        updates += compare_all(*({f"{kind} of {n}": a for n, a in m.items()} for m in (arrays, across.moments[kind])))
    yield judge(10, f"{what}update", pair.dtype, updates, "update")
