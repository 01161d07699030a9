"""Rungs 5 and 6, a train step: the gradients, and the optimizer's update."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from lmcore.optim.schedule import learning_rate
from parity.arrays import Arrays, moved_by_one_ulp
from parity.backends.base import Pair, Step, Twin
from parity.check.known import (
    are_beyond,
    bias_correction_gap,
    by_kernel,
    correction_name,
    undecided_signs,
    within_rounding,
)
from parity.check.result import Result, judge
from parity.check.rungs.base import Options, training_batches
from parity.convert.moments import KINDS, Moments
from parity.difference import Difference, compare_all, difference, worst

__all__ = ["gradients", "updates"]


def gradients(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 5: the loss, the gradient of every parameter, and the global norm, in accumulated micro-batches."""
    reference, port = _first_steps(pair)[0]
    yield judge(5, "training loss", pair.dtype, [difference("loss", reference.loss, port.loss)], "logits")
    differences = [by_kernel(pair, d, reference.grads) for d in compare_all(reference.grads, port.grads)]
    if are_beyond("gradients", pair.dtype, differences):
        differences = within_rounding(pair, differences, training_batches(pair, 1)[0], pair.start)
    note = f"noise floor {_gradient_noise(pair, port):.1e}" if pair.dtype == "bfloat16" else ""
    yield judge(5, f"gradients of {len(differences)} parameters", pair.dtype, differences, "gradients", note)
    norms = [difference("global norm", reference.grad_norm, port.grad_norm)]
    yield judge(5, "global norm", pair.dtype, norms, "gradients")


def _gradient_noise(pair: Pair, unmoved: Step) -> float:
    """Return how much the port's gradients change, relatively, when each weight moves by an ulp of the precision."""
    pair.port.load(moved_by_one_ulp(pair.start, 0, pair.dtype))
    moved = pair.port.step(training_batches(pair, 1)[0], learning_rate(pair.config, 0))
    return worst(compare_all(unmoved.grads, moved.grads)).max_rel


def _first_steps(pair: Pair) -> list[tuple[Step, Step]]:
    """Return both twins' steps on the first two batches, each from the starting weights."""
    steps = []
    for step, batch in enumerate(training_batches(pair, 2)):
        lr = learning_rate(pair.config, step)
        steps.append(pair.each(("step", step), partial(_step, pair, batch, lr)))
    return steps


def _step(pair: Pair, batch: np.ndarray, lr: float, twin: Twin) -> Step:
    return pair.loaded(twin).step(batch, lr)


def updates(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 6: two updates from the same gradients, the first one clipped: parameters and the optimizer's state."""
    grads, batch = _common_gradients(pair), training_batches(pair, 1)[0]  # its own gradients are replaced
    rates = [learning_rate(pair.config, step) for step in range(len(grads))]

    def answer(twin: Twin) -> list[Step]:
        pair.loaded(twin)
        return [twin.step(batch, lr, replacement) for lr, replacement in zip(rates, grads, strict=True)]

    steps = pair.each("updates", answer)
    differences: dict[str, list[Difference]] = {}
    gap: Arrays = {name: np.zeros(value.shape) for name, value in pair.start.items()}
    for number, (reference, port, lr) in enumerate(zip(*steps, rates, strict=True), start=1):
        gap |= {name: gap[name] + lr * change for name, change in bias_correction_gap(pair, reference, number).items()}
        earlier = Moments(number - 1, steps[0][number - 2].moments) if number > 1 else None
        undecided = undecided_signs(pair.config.optim, grads[number - 1], reference.grad_norm, earlier)
        expected = {name: value + gap[name] for name, value in reference.params.items()}
        expected |= {name: np.where(undecided[name], port.params[name], expected[name]) for name in undecided}
        for kind, left, right in (
            ("parameters", expected, port.params),
            *((name, reference.moments.get(kind, {}), port.moments.get(kind, {})) for kind, name in KINDS.items()),
            ("uncorrected", reference.params, port.params),
        ):
            compared = [replace(d, name=f"{d.name} (update {number})") for d in compare_all(left, right)]
            differences[kind] = differences.get(kind, []) + compared
    raw, rounded = judge(6, "", pair.dtype, differences.pop("uncorrected"), None), correction_name(pair)
    for kind, compared in differences.items():
        if not compared:
            continue
        corrected = kind == "parameters" and rounded and raw.dtype != "float64"
        note = f"but for {rounded} in float32; with it {raw.max_rel:.1e}" if corrected else ""
        yield judge(6, f"{kind}, 2 updates", pair.dtype, compared, "update", note)


def _common_gradients(pair: Pair) -> list[Arrays]:
    """Return the reference's gradients of two steps, scaled to twice and half of the norm of the clip."""
    grads = []
    for (reference, _), size in zip(_first_steps(pair), (2.0, 0.5), strict=True):
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in reference.grads.values()))
        scale = size * pair.config.optim.clip / norm if pair.config.optim.clip and norm > 0 else 1.0
        grads.append({name: (g * scale).astype(g.dtype) for name, g in reference.grads.items()})
    return grads
