"""The upper rungs, where a model runs: a training trajectory, cached decoding, and a third implementation."""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tokenizers

from lmcore.config import ModelConfig, SampleConfig
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.generate.prompting import complete, draw_uniforms, write_tokens
from lmcore.model.rope import rope_tables
from parity.backends.base import Pair, Twin, write
from parity.check.result import Result, distributions, judge
from parity.check.rungs.base import Options, training_batches
from parity.check.rungs.freerun import free_running, whole_schedule
from parity.check.rungs.instep import in_step
from parity.check.rungs.sampling import choices, possible_tokens
from parity.convert import names as mapping
from parity.difference import difference, tolerance

__all__ = ["decoding", "third_implementation", "trajectory"]


def trajectory(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 7: a run in step, torch put into JAX's state again and again, then both by themselves.

    The whole schedule, from warmup to the last learning rate, passes within the run.
    """
    config, batches = whole_schedule(pair.config, options.steps), training_batches(pair, options.steps)
    yield from in_step(pair, config, batches)
    yield from free_running(pair, config, batches, options.draws)


def decoding(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 8: token by token from the cache as all at once, in each twin and between them; then the same text."""
    total = min(21, pair.context)
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
    for what, left, right in (
        ("JAX, cache against full forward", cached[0], full[0]),
        ("torch, cache against full forward", cached[1], full[1]),
        ("JAX against torch, from the cache", cached[0], cached[1]),
    ):
        found = [difference("logits", left, right)]
        if pair.dtype == "bfloat16":
            yield distributions(8, what, pair.dtype, left, right, found)
        else:
            yield judge(8, what, pair.dtype, found, "logits")
    yield from choices(pair)
    pairs = (cached[0], full[0]), (cached[1], full[1]), (cached[0], cached[1])
    error = sum(float(np.abs(left.astype(np.float64) - right).max()) for left, right in pairs)
    for what, temperature in (("greedy text", 0.0), ("sampled text", 1.0)):
        yield _texts(pair, what, SampleConfig(temperature=temperature, max_tokens=32), rows, error)
    for twin in (pair.jax, pair.torch):
        yield _sliding(pair, twin, rows, error)
    yield _stopping(pair, rows)


def _texts(pair: Pair, what: str, options: SampleConfig, rows: np.ndarray, error: float) -> Result:
    """What both twins decode after two prompts of different length.

    Where they choose differently within rounding of a boundary, both go on from JAX's choice.

    Args:
        pair: both twins.
        what: for people.
        options: of the draws.
        rows: token ids, of which the beginnings are the prompts.
        error: how far logits of the cache and of the full forward pass are from one another, at most.
    """
    prompts = [[int(token) for token in rows[0, : max(1, len(rows[0]) // 2)]], [int(rows[1, 0])]]
    ids = pair.each(what, lambda twin: write(pair.loaded(twin), prompts, options, pair.context))
    found, notes = [difference("id of token", *ids)], []
    for row, prompt in enumerate(prompts):
        one, other, first = ids[0][row], ids[1][row], 0
        while len(apart := np.flatnonzero(one != other)):
            at = first + int(apart[0])
            read = [*prompt, *(int(token) for token in one[: apart[0]])]
            pair_of_tokens = int(one[apart[0]]), int(other[apart[0]])
            reason = _explain(pair, read, pair_of_tokens, replace(options, seed=options.seed + row), at, error)
            if reason is None:
                break
            notes.append(f"row {row}, token {at}: {reason}")
            prompt, first = [*read, pair_of_tokens[0]], at + 1
            if first == options.max_tokens:
                one = other
                break
            rest = replace(options, seed=options.seed + row, max_tokens=options.max_tokens - first)
            twins = pair.loaded(pair.jax), pair.loaded(pair.torch)
            one, other = (write(twin, [prompt], rest, pair.context, first)[0] for twin in twins)
        if (one != other).any():
            notes.append(f"row {row} differs from token {first + int(np.flatnonzero(one != other)[0])} on")
            break
    else:
        found = [replace(found[0], max_abs=0.0, max_rel=0.0)]
    limit = None if pair.dtype == "bfloat16" else 0.0
    return judge(8, f"{what}, {ids[0].size} tokens", pair.dtype, found, limit, "; ".join(notes))


def _explain(
    pair: Pair, read: list[int], tokens: tuple[int, int], options: SampleConfig, at: int, error: float
) -> str | None:
    """Why two twins may choose different tokens after the same ones, or None where rounding does not explain it."""
    logits = [twin.logits(np.array([read[-pair.context :]], np.int32))[0, -1] for twin in (pair.jax, pair.torch)]
    uniform = float(draw_uniforms(options.seed, 1, at + 1)[0, at])
    slack = error + float(np.abs(logits[0].astype(np.float64) - logits[1]).max())
    possible = possible_tokens(logits[0], uniform, options, slack)
    if not set(tokens) <= possible.tokens:
        return None
    if options.temperature == 0:
        return f"two logits are {possible.distance:.1e} apart, rounding is {possible.rounding:.1e}"
    return f"the draw is {possible.distance:.1e} from a boundary, rounding is {possible.rounding:.1e}"


class _Recorder:
    """A generator that keeps what each reading began from, and all that was decoded after it."""

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
    """Greedy text past the end of a short context: each token is the likeliest after what the cache then holds."""
    context = min(pair.context, 24)
    recorder = _Recorder(pair.loaded(twin).engine.generator(SampleConfig(temperature=0.0)))
    options = SampleConfig(temperature=0.0, max_tokens=3 * context)
    prompt = [int(token) for token in rows[0, : max(1, context // 4)]]
    written = np.concatenate(list(write_tokens(recorder, [prompt], options, context=context, pad=0)), axis=1)[0]
    text = np.concatenate([prompt, written])
    found, end = [], len(prompt)
    for number, window in enumerate(recorder.windows):
        begin = 0 if number == 0 else context // 2
        logits = twin.logits(window[None, :-1].astype(np.int32))[0].astype(np.float64)
        first = len(prompt) if number == 0 else begin
        chosen = window[first:]
        behind = logits[first - 1 :].max(axis=-1) - logits[np.arange(first - 1, len(window) - 1), chosen]
        found.append(difference(f"logit of the token, window {number}", np.maximum(behind - 2 * error, 0), 0 * behind))
        end += len(chosen)
        if number:
            kept = text[end - len(chosen) - begin : end - len(chosen)]
            found.append(difference(f"tokens kept in window {number}", window[:begin], kept))
    name = "JAX" if twin is pair.jax else "torch"
    what = f"{name}, {len(written)} greedy tokens in a context of {context}"
    limit = None if pair.dtype == "bfloat16" else 0.0
    return judge(8, what, pair.dtype, found, limit, f"{len(recorder.windows)} windows")


def _stopping(pair: Pair, rows: np.ndarray) -> Result:
    """Sampled texts end before their first stop token, whichever it is.

    The tokenizer's words are the ids. Stop tokens are end-of-text and one that each twin writes after each prompt.
    """
    size, options = pair.config.model.vocab_size, SampleConfig(temperature=1.0, max_tokens=32)
    words, prompts = {str(token): token for token in range(size)}, [str(rows[0, 0]), str(rows[1, 0])]
    found = []
    for twin in (pair.jax, pair.torch):
        generator = pair.loaded(twin).engine.generator(options)
        ids = [[words[prompt]] for prompt in prompts]
        whole = np.concatenate(list(write_tokens(generator, ids, options, context=pair.context, pad=0)), axis=1)
        stops = {int(whole[0, 7]), int(whole[1, 14])}
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))
        tokenizer = Tokenizer(inner, str(size - 1), [str(token) for token in stops])
        texts = complete(generator, tokenizer, prompts, options, context=pair.context)
        for row, (text, tokens) in enumerate(zip(texts, whole, strict=True)):
            end = int(np.flatnonzero(np.isin(tokens, [*stops, size - 1]))[0])
            found.append(difference(f"{twin.framework}'s tokens before a stop, row {row}", len(text.tokens), end))
            least = min(len(text.tokens), end)
            found.append(difference(f"{twin.framework}'s text, row {row}", text.tokens[:least], tokens[:least]))
    return judge(8, f"{len(prompts)} texts in each twin, up to a stop token", pair.dtype, found, 0.0)


def third_implementation(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 9: transformers' Llama with the same weights, read from a folder as any user would.

    In float64 too, transformers computes norms, softmax and rotary angles in float32: a known difference, for which the
    tolerance of float32 is the right one. An angle of position p is off by up to p roundings, which long contexts show
    in either type; so transformers is asked once more with our tables, and held to the tolerance with them.
    """
    what = "transformers"
    if importlib.util.find_spec("transformers") is None:
        note = "transformers is not installed"
        yield Result(rung=9, what=what, dtype=pair.dtype, verdict="skipped", note=note)
        return
    if pair.dtype == "bfloat16":
        note = "transformers' bfloat16 rounds the parameters too: another model"
        yield Result(rung=9, what=what, dtype=pair.dtype, verdict="skipped", note=note)
        return
    if problems := mapping.not_llama(pair.config.model):
        yield Result(rung=9, what=what, dtype=pair.dtype, verdict="skipped", note="; ".join(problems))
        return
    from parity.convert.huggingface import write_folder

    with tempfile.TemporaryDirectory() as folder:
        params = mapping.convert_names(pair.start, pair.config.model, "jax", "hf")
        try:
            write_folder(Path(folder), pair.config, params, None)
        except UserError as error:
            yield Result(rung=9, what=what, dtype=pair.dtype, verdict="skipped", note=str(error))
            return
        model = _transformers(Path(folder), pair.dtype)
    rows = pair.rows(2, pair.context + 1)
    jax, _ = pair.each("third", lambda twin: pair.loaded(twin).logits(rows[:, :-1]))
    ours, _ = pair.each("third loss", lambda twin: pair.loaded(twin).evaluate(rows[:, :-1], rows[:, 1:]))
    logits, _ = _ask(model, rows)
    own = difference("logits", jax, logits).max_rel
    with _our_tables(model, pair.config.model):
        logits, loss = _ask(model, rows)
    found = [difference("logits", jax, logits), difference("mean loss", ours[0] / ours[1], loss)]
    note = "norms and softmax in float32; " * (pair.dtype == "float64")
    note += f"with our rotary angles; with its own, in float32, {own:.1e}"
    limit = tolerance("logits", "float32")
    yield judge(9, f"{what}, logits and loss, {rows.shape[0]} × {rows.shape[1] - 1}", pair.dtype, found, limit, note)


def _transformers(folder: Path, dtype: str) -> Any:
    """The model in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def _ask(model: Any, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits and mean loss."""
    import torch

    tokens = torch.from_numpy(rows).long()
    with torch.inference_mode():
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return logits.numpy(), float(loss)


def _our_tables(model: Any, config: ModelConfig) -> Any:
    """transformers' rotary module answers from our tables while the context is open."""
    import torch

    cos, sin = map(torch.tensor, rope_tables(config))
    sin = sin[:, config.head_dim // 2 :].tile(2)  # the sign is in its rotation

    def tables(x: Any, position_ids: Any) -> tuple[Any, Any]:
        return cos[position_ids].to(x.dtype), sin[position_ids].to(x.dtype)

    return mock.patch.object(model.model.rotary_emb, "forward", tables)
