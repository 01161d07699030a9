"""Rungs 3 and 4, the forward pass: activations layer by layer, logits, and the loss."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from lmcore.data.marks import BEGINS, target_ids
from parity.backends.base import Pair, Twin
from parity.check.result import Result, distributions, judge
from parity.check.rungs.base import Options
from parity.difference import Difference, compare_all, difference

__all__ = ["activations", "outputs"]


def activations(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 3: every activation, in the order of computation."""
    tokens = pair.rows(2, min(pair.context, 48), marked=True)
    reference, port = pair.each("activations", lambda twin: pair.loaded(twin).activations(tokens))
    what = f"{len(reference)} activations, {tokens.shape[0]} × {tokens.shape[1]} tokens"
    yield judge(3, what, pair.dtype, _in_order(compare_all(reference, port), reference), "logits")


def _in_order(differences: list[Difference], names: Iterable[str]) -> list[Difference]:
    order = {name: index for index, name in enumerate(names)}
    return sorted(differences, key=lambda d: order.get(d.name, len(order)))


def outputs(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 4: logits at a short and at the full length, the loss of each token, and their sum."""
    for count, length in ((3, min(7, pair.context)), (1, pair.context)):
        tokens = pair.rows(count, length, marked=True)
        reference, port = pair.each(("logits", length), partial(_logits, pair, tokens))
        differences = [difference("logits", reference, port)]
        what = f"logits, {count} × {length} tokens"
        if pair.dtype == "bfloat16":
            yield distributions(4, what, pair.dtype, reference, port, differences)
        else:
            yield judge(4, what, pair.dtype, differences, "logits")
    yield from _losses(pair)
    if pair.config.data.is_marked:
        yield _by_themselves(pair)


def _logits(pair: Pair, tokens: np.ndarray, twin: Twin) -> np.ndarray:
    return pair.loaded(twin).logits(tokens)


def _by_themselves(pair: Pair) -> Result:
    """Compare three documents in one sequence with each by itself, in each twin."""
    alone = pair.rows(3, max(1, min(pair.context // 3, 11)))
    packed = alone.copy()
    packed[:, 0] |= BEGINS
    differences = []
    for twin in pair:
        together, one_by_one = (_logits(pair, rows, twin) for rows in (packed.reshape(1, -1), alone))
        name = f"logits of {twin.backend.label}"
        differences.append(difference(name, one_by_one, together.reshape(one_by_one.shape)))
    return judge(4, "documents of a sequence, each by itself", pair.dtype, differences, "logits")


def _losses(pair: Pair) -> Iterator[Result]:
    """Compare the loss of each token from the same logits, and the summed loss where some targets are ignored."""
    tokens = pair.rows(3, min(pair.context, 33) + 1, marked=True)
    inputs, targets = tokens[:, :-1], target_ids(tokens[:, 1:])
    targets[1, targets.shape[1] // 2 :] = -1
    targets[2, 1:] = -1
    logits = pair.each("common logits", lambda twin: pair.loaded(twin).logits(inputs))[0]
    reference, port = pair.each("token losses", lambda twin: twin.token_losses(logits, targets))
    loss_dtype = "float32" if pair.dtype == "bfloat16" else pair.dtype  # logits and loss are float32 in bfloat16 too
    note = f"in {loss_dtype}, from the same logits"
    result = judge(4, "loss of each token", loss_dtype, [difference("token losses", reference, port)], "logits", note)
    yield replace(result, dtype=pair.dtype)
    reference, port = pair.each("evaluate", lambda twin: pair.loaded(twin).evaluate(inputs, targets))
    sums = [difference("summed loss", reference[0], port[0])]
    yield judge(4, "summed loss, some targets ignored", pair.dtype, sums, "logits")
    counts = [difference("counted targets", reference[1], port[1])]
    yield judge(4, "number of targets that count", pair.dtype, counts, 0.0)
