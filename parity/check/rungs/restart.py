"""Rung 10: save, restore and go on, in each twin and from one to the other.

A checkpoint that lost the optimizer's state, or a restore that reads it wrongly, still trains, a little worse. So each
twin is stopped in the middle of a run and restored from its own files: from there it must give the bits of the run that
was never stopped. Then its files are converted, and the other twin takes its next step.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmcore.optim.schedule import learning_rate
from lmcore.optim.table import OPTIMIZERS
from lmcore.run.checkpoints import Checkpoint
from parity.backends.base import Arrays, Pair, Step, Twin
from parity.check.known import are_beyond, bias_correction_gap, orthogonal_within_rounding, undecided_signs
from parity.check.result import Result, identical, judge
from parity.check.rungs.base import Options, training_batches
from parity.convert.moments import Moments
from parity.convert.states import read_state, write_state
from parity.difference import Difference, compare_all, update_differences

__all__ = ["restart"]

BEFORE, AFTER = 2, 2
"""Steps before the checkpoint, and from it on."""


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
    same: list[Difference] = []
    for number, (one, other) in enumerate(zip(unbroken, restored, strict=True), start=BEFORE + 1):
        same.append(identical(f"loss (step {number})", np.array(one.loss), np.array(other.loss)))
        for left, right in ((one.grads, other.grads), (one.params, other.params)):
            same += [identical(f"{name} (step {number})", left[name], right[name]) for name in left]
        for kind, arrays in one.moments.items():
            same += [identical(f"{kind} of {n} (step {number})", a, other.moments[kind][n]) for n, a in arrays.items()]
    what = f"{twin.backend.label}, restored, against unbroken"
    return judge(10, what, pair.dtype, same, 0.0 if pair.on_cpu(twin) else "update")


def _across(
    pair: Pair, twin: Twin, other: Twin, steps: tuple[Step, Step], batches: list[np.ndarray]
) -> Iterator[Result]:
    """The other twin's next step from the converted checkpoint, with this twin's gradients in the place of its own.

    Args:
        pair: both twins.
        twin: wrote the checkpoint.
        other: was restored from it, converted.
        steps: this twin's last before the checkpoint, and first from it on.
        batches: of all steps, each B T1.
    """
    before, ours = steps
    lr = learning_rate(pair.config, BEFORE)
    theirs = other.step(batches[BEFORE], lr, ours.grads)
    what = f"{twin.backend.label} → {other.backend.label}, converted: "
    yield judge(10, f"{what}gradients", pair.dtype, compare_all(ours.grads, theirs.grads), "gradients")
    reference, port = (ours, theirs) if twin is pair.reference else (theirs, ours)
    gap: Arrays = {n: lr * change for n, change in bias_correction_gap(pair, reference, BEFORE + 1).items()}
    left_out = undecided_signs(pair.config.optim, ours.grads, ours.grad_norm, Moments(BEFORE, before.moments))
    updates = update_differences(before.params, reference.params, port.params, gap, 1, left_out)
    if OPTIMIZERS[pair.config.optim.name].rest and are_beyond("update", pair.dtype, updates):
        state = before.params, Moments(BEFORE, before.moments), BEFORE
        updates = orthogonal_within_rounding(pair, updates, batches[BEFORE], lr, ours.grads, *state, 1)
    for kind, arrays in ours.moments.items():
        updates += compare_all(*({f"{kind} of {n}": a for n, a in m.items()} for m in (arrays, theirs.moments[kind])))
    yield judge(10, f"{what}update", pair.dtype, updates, "update")
