"""The ladder: twelve rungs, each a question to both twins about the same inputs, from batches up to whole trainings.

A rung yields a line for each thing that it compares. The first rungs are the narrowest, so that the first line which
fails names the cause: what follows from it fails further up. Rungs 0 and 7 to 11 are in `parity.check.rungs`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import ml_dtypes
import numpy as np

from lmcore.data.batches import Batches, Tokens
from lmcore.optim.schedule import learning_rate
from parity.backends.base import Arrays, Pair, Step, Twin, moved_by_one_ulp
from parity.check.known import (
    are_beyond,
    bias_correction_gap,
    by_kernel,
    corrects_bias,
    undecided_signs,
    within_rounding,
)
from parity.check.result import Result, distributions, identical, judge
from parity.check.rungs.base import Options, training_batches
from parity.check.rungs.execution import execution
from parity.check.rungs.repeat import repeat
from parity.check.rungs.restart import restart
from parity.check.rungs.runs import decoding, third_implementation, trajectory
from parity.convert import names as mapping
from parity.convert.moments import KINDS, Moments
from parity.difference import Difference, compare_all, difference, worst

__all__ = ["RUNGS", "Rung", "climb"]


@dataclass(frozen=True)
class Rung:
    """One rung."""

    number: int
    title: str
    climb: Callable[[Pair, Options], Iterable[Result]]


def climb(
    pair: Pair, rungs: Iterable[int] | None = None, options: Options | None = None, stop: bool = False
) -> Iterator[Result]:
    """Climb the rungs in order; with `stop`, no further than the first line that fails."""
    wanted = [rung for rung in RUNGS if rungs is None or rung.number in rungs]
    for rung in wanted:
        begin = time.perf_counter()
        for result in rung.climb(pair, options or Options()):
            yield replace(result, seconds=time.perf_counter() - begin)
            if stop and not result.ok:
                return
            begin = time.perf_counter()


def repeated(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 0: each twin gives the same bits again."""
    yield from repeat(pair, training_batches(pair, 1)[0], learning_rate(pair.config, 0))


def batches(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 1: both train steps receive the ids that the shared core drew."""
    found = []
    for step, batch in enumerate(training_batches(pair, 2)):
        expected = batch.reshape(pair.config.train.grad_accum, -1, batch.shape[1])
        received = pair.each(("received", step), partial(_received, pair, batch))
        for name, ids in zip(("JAX", "torch"), received, strict=True):
            found.append(difference(f"batch {step} in {name}", expected, ids))
    yield judge(1, f"ids of {len(found) // 2} batches", pair.dtype, found, 0.0)
    yield _each_token_once(pair)


def _each_token_once(pair: Pair) -> Result:
    """Over two epochs of a short text, every token but the fewer than a window that are left over is a target once.

    The text's ids are its positions, so that a batch says where it was read.
    """
    length, rows, windows = pair.config.train.seq_len, pair.config.train.batch_size, 5
    text = Tokens(ids=np.arange(windows * length + 1), documents=1, bytes=1, unknown=0)
    drawn = Batches(text, seq_len=length, batch_size=rows, seed=pair.config.train.seed)
    count = -(-2 * windows // rows)
    targets = np.concatenate([drawn.batch(step)[:, 1:] for step in range(count)])[: 2 * windows]
    found = []
    for epoch, read in enumerate(targets.reshape(2, -1)):
        found.append(difference(f"tokens read in epoch {epoch}", windows * length, len(np.unique(read))))
    return judge(1, "two epochs, each token once", pair.dtype, found, 0.0)


def _received(pair: Pair, batch: np.ndarray, twin: Twin) -> np.ndarray:
    return pair.loaded(twin).received(batch)


def weights(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 2: the same first weights, and a way through every layout and back that changes no bit."""
    if pair.fresh:
        jax, torch = pair.each("initial", lambda twin: twin.initial())
        found = [identical(name, jax[name], torch[name]) for name in jax]
        yield judge(2, "initial weights of each twin", pair.dtype, found, 0.0)
    model = pair.config.model
    sides: tuple[mapping.Side, ...] = ("torch",) if mapping.not_llama(model) else ("torch", "hf")
    found = []
    for kind in (pair.start[next(iter(pair.start))].dtype, np.dtype(ml_dtypes.bfloat16)):
        typed = {name: value.astype(kind) for name, value in pair.start.items()}
        for side in sides:
            there = mapping.convert_names(typed, model, "jax", side)
            back = mapping.convert_names(there, model, side, "jax")
            found += [identical(f"{name} ({kind}, {side})", typed[name], back[name]) for name in typed]
    yield judge(2, "table of names, there and back", pair.dtype, found, 0.0)
    loaded = pair.each("loaded", lambda twin: pair.loaded(twin).params())
    found = [
        identical(f"{name} ({twin})", pair.start[name], values[name])
        for twin, values in zip(("JAX", "torch"), loaded, strict=True)
        for name in pair.start
    ]
    yield judge(2, "weights in the models", pair.dtype, found, 0.0)


def activations(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 3: every activation, in the order of computation."""
    tokens = pair.rows(2, min(pair.context, 48))
    jax, torch = pair.each("activations", lambda twin: pair.loaded(twin).activations(tokens))
    what = f"{len(jax)} activations, {tokens.shape[0]} × {tokens.shape[1]} tokens"
    yield judge(3, what, pair.dtype, _in_order(compare_all(jax, torch), jax), "logits")


def _in_order(differences: list[Difference], names: Iterable[str]) -> list[Difference]:
    order = {name: place for place, name in enumerate(names)}
    return sorted(differences, key=lambda d: order.get(d.name, len(order)))


def outputs(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 4: logits at a short and at the full length, the loss of each token, and their sum."""
    for count, length in ((3, min(7, pair.context)), (1, pair.context)):
        tokens = pair.rows(count, length)
        jax, torch = pair.each(("logits", length), partial(_logits, pair, tokens))
        found = [difference("logits", jax, torch)]
        what = f"logits, {count} × {length} tokens"
        if pair.dtype == "bfloat16":
            yield distributions(4, what, pair.dtype, jax, torch, found)
        else:
            yield judge(4, what, pair.dtype, found, "logits")
    tokens = pair.rows(3, min(pair.context, 33) + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[1, targets.shape[1] // 2 :] = -1
    targets[2, 1:] = -1
    given = pair.each("given logits", lambda twin: pair.loaded(twin).logits(inputs))[0]
    jax, torch = pair.each("token losses", lambda twin: twin.token_losses(given, targets))
    exact = "float32" if pair.dtype == "bfloat16" else pair.dtype  # logits and loss are float32 in bfloat16 too
    note = f"in {exact}, from the same logits"
    result = judge(4, "loss of each token", exact, [difference("token losses", jax, torch)], "logits", note)
    yield replace(result, dtype=pair.dtype)
    jax, torch = pair.each("evaluate", lambda twin: pair.loaded(twin).evaluate(inputs, targets))
    found = [difference("summed loss", jax[0], torch[0])]
    yield judge(4, "summed loss, some targets ignored", pair.dtype, found, "logits")
    counts = [difference("counted targets", jax[1], torch[1])]
    yield judge(4, "number of targets that count", pair.dtype, counts, 0.0)


def _logits(pair: Pair, tokens: np.ndarray, twin: Twin) -> np.ndarray:
    return pair.loaded(twin).logits(tokens)


def gradients(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 5: loss, gradient of every parameter, and the global norm, in accumulated micro-batches."""
    jax, torch = _first_steps(pair)[0]
    yield judge(5, "training loss", pair.dtype, [difference("loss", jax.loss, torch.loss)], "logits")
    found = [by_kernel(pair, d, jax.grads) for d in compare_all(jax.grads, torch.grads)]
    if are_beyond("gradients", pair.dtype, found):
        found = within_rounding(pair, found, training_batches(pair, 1)[0], pair.start)
    note = f"noise floor {_gradient_noise(pair, torch):.1e}" if pair.dtype == "bfloat16" else ""
    yield judge(5, f"gradients of {len(found)} parameters", pair.dtype, found, "gradients", note)
    norms = [difference("global norm", jax.grad_norm, torch.grad_norm)]
    yield judge(5, "global norm", pair.dtype, norms, "gradients")


def _gradient_noise(pair: Pair, unmoved: Step) -> float:
    """How far torch's gradients stray from themselves when every weight is moved by one ulp."""
    pair.torch.load(moved_by_one_ulp(pair.start, 0))
    moved = pair.torch.step(training_batches(pair, 1)[0], learning_rate(pair.config, 0))
    return worst(compare_all(unmoved.grads, moved.grads)).max_rel


def _first_steps(pair: Pair) -> list[tuple[Step, Step]]:
    """Both twins' steps on the first two batches, each from the starting weights."""
    steps = []
    for step, batch in enumerate(training_batches(pair, 2)):
        lr = learning_rate(pair.config, step)
        steps.append(pair.each(("step", step), partial(_step, pair, batch, lr)))
    return steps


def _step(pair: Pair, batch: np.ndarray, lr: float, twin: Twin) -> Step:
    return pair.loaded(twin).step(batch, lr)


def updates(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 6: two updates from the same gradients, the first one clipped: parameters and what the optimizer keeps."""
    given = []
    for (jax, _), size in zip(_first_steps(pair), (2.0, 0.5), strict=True):
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in jax.grads.values()))
        scale = size * pair.config.optim.clip / norm if pair.config.optim.clip and norm > 0 else 1.0
        given.append({name: (g * scale).astype(g.dtype) for name, g in jax.grads.items()})
    batch = training_batches(pair, 1)[0]  # its gradients are replaced
    rates = [learning_rate(pair.config, step) for step in range(len(given))]

    def ask(twin: Twin) -> list[Step]:
        pair.loaded(twin)
        return [twin.step(batch, lr, grads) for lr, grads in zip(rates, given, strict=True)]

    jax, torch = pair.each("updates", ask)
    found: dict[str, list[Difference]] = {}
    gap: Arrays = {name: np.zeros(value.shape) for name, value in pair.start.items()}
    for number, (one, other, lr) in enumerate(zip(jax, torch, rates, strict=True), start=1):
        gap |= {name: gap[name] + lr * change for name, change in bias_correction_gap(pair, one, number).items()}
        earlier = Moments(number - 1, jax[number - 2].moments) if number > 1 else None
        either = undecided_signs(pair.config.optim, given[number - 1], one.grad_norm, earlier)
        expected = {name: value + gap[name] for name, value in one.params.items()}
        expected |= {name: np.where(either[name], other.params[name], expected[name]) for name in either}
        for kind, left, right in (
            ("parameters", expected, other.params),
            *((name, one.moments.get(kind, {}), other.moments.get(kind, {})) for kind, name in KINDS.items()),
            ("uncorrected", one.params, other.params),
        ):
            compared = [replace(d, name=f"{d.name} (update {number})") for d in compare_all(left, right)]
            found[kind] = found.get(kind, []) + compared
    raw = judge(6, "", pair.dtype, found.pop("uncorrected"), None)
    for kind, differences in found.items():
        if not differences:
            continue
        corrected = kind == "parameters" and corrects_bias(pair.config.optim) and raw.dtype != "float64"
        note = f"but for optax's 1 − β^t in float32; with it {raw.max_rel:.1e}" if corrected else ""
        yield judge(6, f"{kind}, 2 updates", pair.dtype, differences, "update", note)


def restored(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 10: save, restore and go on."""
    yield from restart(pair, training_batches(pair, 4))


def executed(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 11: options that change how, not what."""
    yield from execution(pair)


RUNGS = (
    Rung(0, "each twin against itself", repeated),
    Rung(1, "batches and token ids", batches),
    Rung(2, "weights there and back", weights),
    Rung(3, "activations, layer by layer", activations),
    Rung(4, "logits and loss", outputs),
    Rung(5, "gradients", gradients),
    Rung(6, "optimizer update", updates),
    Rung(7, "training trajectory", trajectory),
    Rung(8, "cached decoding", decoding),
    Rung(9, "a third implementation", third_implementation),
    Rung(10, "save, restore, go on", restored),
    Rung(11, "ways of computing", executed),
)
