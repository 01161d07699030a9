"""Rung 8: decoding with the KV cache against the full forward pass, the choice of tokens, and decoded text."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import tokenizers

from lmcore.config import SampleConfig
from lmcore.data.tokenizer import Tokenizer
from lmcore.generate.prompting import complete, draw_uniforms, write_tokens
from parity.backends.base import Pair, Twin, generate
from parity.check.result import Result, distributions, judge
from parity.check.rungs.base import Options
from parity.check.rungs.int8 import int8
from parity.check.rungs.sampling import choices, possible_tokens
from parity.check.rungs.slots import slots
from parity.difference import difference

__all__ = ["decoding"]


def decoding(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 8: cached decoding against the full forward pass, in each twin and between them; then decoded text."""
    total = min(33, pair.context)
    prompt = total // 2
    pads = np.array([0, 3, prompt - 1], np.int32).clip(0, prompt - 1)
    rows = pair.rows(3, total)
    padded = np.zeros_like(rows)
    for row, pad in enumerate(pads):
        padded[row, pad:] = rows[row, : total - pad]
    steps = np.arange(prompt - 1, total)
    cached, full = [], []
    for decoded, logits in zip(
        pair.each("cached", lambda twin: pair.loaded(twin).decode(padded, pads, prompt, total + 3)),
        pair.each("uncached", lambda twin: pair.loaded(twin).logits(rows)),
        strict=True,
    ):
        cached.append(decoded)
        full.append(np.stack([logits[row, steps - pad] for row, pad in enumerate(pads)]))
    compared = [(cached[0], full[0]), (cached[1], full[1]), (cached[0], cached[1])]
    names = [f"{label}, cache against full forward" for label in pair.labels]
    for what, (left, right) in zip((*names, f"{' against '.join(pair.labels)}, from the cache"), compared, strict=True):
        differences = [difference("logits", left, right)]
        if pair.dtype == "bfloat16":
            yield distributions(8, what, pair.dtype, left, right, differences)
        else:
            yield judge(8, what, pair.dtype, differences, "logits")
    yield from choices(pair)
    error = sum(float(np.abs(left.astype(np.float64) - right).max()) for left, right in compared)
    for what, temperature in (("greedy text", 0.0), ("sampled text", 1.0)):
        yield _decoded_text(pair, what, SampleConfig(temperature=temperature, max_tokens=32), rows, error)
    yield from slots(pair)
    yield from int8(pair)
    for twin in pair:
        yield _sliding(pair, twin, rows, error)
    yield _stopping(pair, rows)


def _decoded_text(pair: Pair, what: str, options: SampleConfig, rows: np.ndarray, error: float) -> Result:
    """Compare what both twins decode after two prompts of different length.

    Where they choose differently within rounding of a boundary, both continue from the reference's choice.

    Args:
        pair: both twins.
        what: name of the comparison.
        options: of the draws.
        rows: token ids B T, whose beginnings are the prompts.
        error: maximum difference between the logits of cached decoding and of the full forward pass.
    """
    prompts = [[int(token) for token in rows[0, : max(1, len(rows[0]) // 2)]], [int(rows[1, 0])]]
    ids = pair.each(what, lambda twin: generate(pair.loaded(twin), prompts, options, pair.context))
    differences, notes = [difference("id of token", *ids)], []
    for row, prompt in enumerate(prompts):
        one, other, first = ids[0][row], ids[1][row], 0
        while len(unequal := np.flatnonzero(one != other)):
            position = int(unequal[0])
            at = first + position
            context = [*prompt, *(int(token) for token in one[:position])]
            chosen = int(one[position]), int(other[position])
            reason = _explain(pair, context, chosen, replace(options, seed=options.seed + row), at, error)
            if reason is None:
                break
            notes.append(f"row {row}, token {at}: {reason}")
            prompt, first = [*context, chosen[0]], at + 1
            if first == options.max_tokens:
                one = other
                break
            rest = replace(options, seed=options.seed + row, max_tokens=options.max_tokens - first)
            twins = [pair.loaded(twin) for twin in pair]
            one, other = (generate(twin, [prompt], rest, pair.context, first)[0] for twin in twins)
        if (one != other).any():
            notes.append(f"row {row} differs from token {first + int(np.flatnonzero(one != other)[0])} on")
            break
    else:
        differences = [replace(differences[0], max_abs=0.0, max_rel=0.0)]
    limit = None if pair.dtype == "bfloat16" else 0.0
    return judge(8, f"{what}, {ids[0].size} tokens", pair.dtype, differences, limit, "; ".join(notes))


def _explain(
    pair: Pair, context: list[int], tokens: tuple[int, int], options: SampleConfig, at: int, error: float
) -> str | None:
    """Return why the twins may choose different tokens after the same ones; None if rounding does not explain it.

    Args:
        pair: both twins.
        context: token ids before the choice.
        tokens: the token that each twin chose.
        options: of the draws, with the sequence's own seed.
        at: number of tokens decoded before the choice.
        error: maximum error of a logit from the cache.
    """
    logits = [twin.logits(np.array([context[-pair.context :]], np.int32))[0, -1] for twin in pair]
    uniform = float(draw_uniforms(options.seed, 1, at + 1)[0, at])
    slack = error + float(np.abs(logits[0].astype(np.float64) - logits[1]).max())
    possible = possible_tokens(logits[0], uniform, options, slack)
    if not set(tokens) <= possible.tokens:
        return None
    if options.temperature == 0:
        return f"two logits differ by {possible.distance:.1e}, rounding is {possible.rounding:.1e}"
    return f"the draw is {possible.distance:.1e} from a boundary, rounding is {possible.rounding:.1e}"


class _Recorder:
    """A generator that records the tokens of each prefill, and those decoded after it."""

    def __init__(self, generator: Any):
        self.generator = generator
        self.windows: list[np.ndarray] = []

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> Any:
        self.windows.append(tokens[0, pads[0] :])
        return self.generator.start(tokens, pads, size)

    def has_nan(self, state: Any) -> Any:
        return self.generator.has_nan(state)

    def extend(self, state: Any, uniforms: np.ndarray) -> tuple[np.ndarray, Any]:
        tokens, state = self.generator.extend(state, uniforms)
        self.windows[-1] = np.concatenate([self.windows[-1], tokens[0]])
        return tokens, state


def _sliding(pair: Pair, twin: Twin, rows: np.ndarray, error: float) -> Result:
    """Decode greedily past the end of a short context: each token must be the most likely after the cached ones."""
    context = min(pair.context, 24)
    recorder = _Recorder(pair.loaded(twin).engine.generator(SampleConfig(temperature=0.0)))
    options = SampleConfig(temperature=0.0, max_tokens=3 * context)
    prompt = [int(token) for token in rows[0, : max(1, context // 4)]]
    decoded = np.concatenate(list(write_tokens(recorder, [prompt], options, context=context, pad=0)), axis=1)[0]
    text = np.concatenate([prompt, decoded])
    differences, end = [], len(prompt)
    for number, window in enumerate(recorder.windows):
        begin = 0 if number == 0 else context // 2
        padded = np.zeros((1, context), np.int32)  # what follows a position does not change its logits
        padded[0, : len(window) - 1] = window[:-1]
        logits = twin.logits(padded)[0].astype(np.float64)
        first = len(prompt) if number == 0 else begin
        chosen = window[first:]
        predicted = logits[first - 1 : len(window) - 1]
        below = predicted.max(axis=-1) - predicted[np.arange(len(chosen)), chosen]
        below = np.maximum(below - 2 * error, 0)
        differences.append(difference(f"logit of the token, window {number}", below, np.zeros_like(below)))
        end += len(chosen)
        if number:
            newest = text[end - len(chosen) - begin : end - len(chosen)]
            differences.append(difference(f"tokens kept in window {number}", window[:begin], newest))
    what = f"{twin.backend.label}, {len(decoded)} greedy tokens in a context of {context}"
    limit = None if pair.dtype == "bfloat16" else 0.0
    return judge(8, what, pair.dtype, differences, limit, f"{len(recorder.windows)} windows")


def _stopping(pair: Pair, rows: np.ndarray) -> Result:
    """Check that sampled sequences end before their first stop token, whichever it is.

    The tokenizer has the token ids as words. Stop tokens are end-of-text and one that each twin decodes per prompt.
    """
    size, options = pair.config.model.vocab_size, SampleConfig(temperature=1.0, max_tokens=32)
    words, prompts = {str(token): token for token in range(size)}, [str(rows[0, 0]), str(rows[1, 0])]
    differences = []
    for twin in pair:
        generator, name = pair.loaded(twin).engine.generator(options), twin.backend.framework
        ids = [[words[prompt]] for prompt in prompts]
        sequences = np.concatenate(list(write_tokens(generator, ids, options, context=pair.context, pad=0)), axis=1)
        stops = {int(sequences[0, 7]), int(sequences[1, 14])}
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))
        tokenizer = Tokenizer(inner, str(size - 1), [str(token) for token in stops])
        texts = complete(generator, tokenizer, prompts, options, context=pair.context)
        for row, (text, tokens) in enumerate(zip(texts, sequences, strict=True)):
            end = int(np.flatnonzero(np.isin(tokens, [*stops, size - 1]))[0])
            differences.append(difference(f"{name}'s tokens before a stop, row {row}", len(text.tokens), end))
            common = min(len(text.tokens), end)
            differences.append(difference(f"{name}'s text, row {row}", text.tokens[:common], tokens[:common]))
    return judge(8, f"{len(prompts)} texts in each twin, up to a stop token", pair.dtype, differences, 0.0)
