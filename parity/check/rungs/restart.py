"""Rung 10: save, restore and go on, in each twin and from one to the other.

A checkpoint that lost what the optimizer keeps, or took it up wrongly, still trains, a little worse. So each twin is
stopped in the middle of a run and restored from its own files: from there it must give the bits of the run that was
never stopped. Then its files are converted, and the other twin takes its next step.
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
from parity.convert.moments import Moments
from parity.convert.states import read_state, write_state
from parity.difference import Difference, compare_all, update_differences

__all__ = ["restart"]

BEFORE, AFTER = 2, 2
"""Steps before the checkpoint, and from it on."""
NAMES = {"jax": "JAX", "torch": "torch"}


def restart(pair: Pair, batches: list[np.ndarray]) -> Iterator[Result]:
    """Compare restored runs with unbroken ones.

    Args:
        pair: both twins.
        batches: of BEFORE + AFTER steps, each B T1.
    """
    for twin, other in ((pair.jax, pair.torch), (pair.torch, pair.jax)):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Checkpoint(Path(folder), twin.framework, BEFORE, None)
            twin.load(pair.start)
            before = _steps(pair, twin, batches, 0, BEFORE)[-1]
            twin.engine.save(checkpoint.state)()
            unbroken = _steps(pair, twin, batches, BEFORE, AFTER)
            twin.load(pair.start)
            twin.engine.restore(checkpoint.state)
            restored = _steps(pair, twin, batches, BEFORE, AFTER)
            yield _same_bits(pair, twin, unbroken, restored)
            moved = read_state(checkpoint, pair.config).to("torch" if twin is pair.jax else "jax", pair.config)
            converted = Path(folder) / "converted"
            write_state(converted, moved, pair.config)()
            other.load(pair.start)
            other.engine.restore(converted)
            yield from _across(pair, twin, other, (before, unbroken[0]), batches)


def _steps(pair: Pair, twin: Twin, batches: list[np.ndarray], first: int, count: int) -> list[Step]:
    return [twin.step(batches[i], learning_rate(pair.config, i)) for i in range(first, first + count)]


def _same_bits(pair: Pair, twin: Twin, unbroken: list[Step], restored: list[Step]) -> Result:
    found: list[Difference] = []
    for number, (one, other) in enumerate(zip(unbroken, restored, strict=True), start=BEFORE + 1):
        found.append(identical(f"loss (step {number})", np.array(one.loss), np.array(other.loss)))
        for left, right in ((one.grads, other.grads), (one.params, other.params)):
            found += [identical(f"{name} (step {number})", left[name], right[name]) for name in left]
        for kind, arrays in one.moments.items():
            found += [identical(f"{kind} of {n} (step {number})", a, other.moments[kind][n]) for n, a in arrays.items()]
    what = f"{NAMES[twin.framework]}, restored, against unbroken"
    return judge(10, what, pair.dtype, found, 0.0 if pair.on_cpu(twin) else "update")


def _across(
    pair: Pair, twin: Twin, other: Twin, steps: tuple[Step, Step], batches: list[np.ndarray]
) -> Iterator[Result]:
    """The other twin's next step from the converted checkpoint, with this twin's gradients in the place of its own."""
    before, one = steps
    lr = learning_rate(pair.config, BEFORE)
    got = other.step(batches[BEFORE], lr, one.grads)
    what = f"{NAMES[twin.framework]} → {NAMES[other.framework]}, converted: "
    yield judge(10, f"{what}gradients", pair.dtype, compare_all(one.grads, got.grads), "gradients")
    jax, torch = (one, got) if twin is pair.jax else (got, one)
    gap: Arrays = {n: lr * change for n, change in bias_correction_gap(pair, jax, BEFORE + 1).items()}
    left_out = undecided_signs(pair.config.optim, one.grads, one.grad_norm, Moments(BEFORE, before.moments))
    found = update_differences(before.params, jax.params, torch.params, gap, 1, left_out)
    if OPTIMIZERS[pair.config.optim.name].rest and are_beyond("update", pair.dtype, found):
        state = before.params, Moments(BEFORE, before.moments), BEFORE
        found = orthogonal_within_rounding(pair, found, batches[BEFORE], lr, one.grads, *state, 1)
    for kind, arrays in one.moments.items():
        found += compare_all(*({f"{kind} of {n}": a for n, a in m.items()} for m in (arrays, got.moments[kind])))
    yield judge(10, f"{what}update", pair.dtype, found, "update")
