"""The upper rungs, where a model runs: a training trajectory, cached decoding, and a third implementation."""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from lmcore.config import Config, ModelConfig, SampleConfig
from lmcore.errors import UserError
from lmcore.rope import rope_tables
from parity import mapping
from parity.difference import difference, tolerance
from parity.result import Result, distributions, judge
from parity.twins import Pair, moved_by_one_ulp, train, write

if TYPE_CHECKING:
    from parity.ladder import Options

__all__ = ["decoding", "third_implementation", "trajectory"]

LEAST = 1e-9
"""Loss difference that a float64 trajectory may always have."""


def trajectory(pair: Pair, options: "Options") -> Iterator[Result]:
    """Rung 7: the losses of a run, against the noise floor.

    The floor is the median over draws of how far a framework strays from itself when every initial weight is moved by
    one ulp; the draws go to both frameworks in turn. It is a fair measure of float32 only once the noise has grown to
    its full size, which at a low learning rate takes longer than the check has; so in less than float64 the whole
    schedule, from warmup to the last learning rate, passes within the run.
    """
    from parity.ladder import training_batches

    config = pair.config if pair.dtype == "float64" else _whole_schedule(pair.config, options.steps)
    batches = training_batches(pair, options.steps)
    key = "trajectory", options.steps
    jax, torch = pair.each(key, lambda twin: train(twin, config, pair.start, batches))
    draws = []
    for draw in range(options.draws):
        twin, unmoved = ((pair.jax, jax), (pair.torch, torch))[draw % 2]
        kept = pair.kept[twin.framework]
        if (*key, draw) not in kept:
            kept[(*key, draw)] = train(twin, config, moved_by_one_ulp(pair.start, draw), batches)
        draws.append(np.abs(kept[(*key, draw)] - unmoved))
    floor = float(np.median([draw.max() for draw in draws]))
    apart = difference("loss at step", jax, torch)
    allowed = max(LEAST, 2 * floor) if pair.dtype == "float64" else 2 * floor
    curves = {"jax": jax, "torch": torch, "floor": np.median(draws, axis=0), "highest": np.max(draws, axis=0)}
    by_floor = "2 × noise floor" if allowed != LEAST else "the noise floor is less"
    ok = apart.max_abs <= allowed
    yield Result(
        rung=7,
        what=f"losses of {options.steps} steps, {jax[0]:.3f} → {jax[-1]:.3f}",
        dtype=pair.dtype,
        verdict="pass" if ok else "FAIL",
        max_abs=apart.max_abs,
        max_rel=apart.max_rel,
        where=apart.place,
        first="" if ok else apart.name,
        limit=f"{allowed:.1e} abs",
        note=f"{by_floor}: {floor:.1e}, the median of {options.draws} draws",
        differences=(apart,),
        curves={name: [float(x) for x in values] for name, values in curves.items()},
    )


def _whole_schedule(config: Config, steps: int) -> Config:
    """A run of `steps`, warmup in proportion."""
    warmup = round((config.optim.warmup_steps or 0) * steps / config.train.steps)
    optim = replace(config.optim, warmup_steps=min(max(1, warmup), steps - 1))
    return replace(config, optim=optim, train=replace(config.train, steps=steps))


def decoding(pair: Pair, options: "Options") -> Iterator[Result]:
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
    for what, temperature in (("greedy text", 0.0), ("sampled text", 1.0)):
        yield _texts(pair, what, SampleConfig(temperature=temperature, max_tokens=32), rows)


def _texts(pair: Pair, what: str, options: SampleConfig, rows: np.ndarray) -> Result:
    """What both twins write after two prompts of different length."""
    prompts = [[int(token) for token in rows[0, : max(1, len(rows[0]) // 2)]], [int(rows[1, 0])]]
    ids = pair.each(what, lambda twin: write(pair.loaded(twin), prompts, options, pair.context))
    found = difference("id of token", *ids)
    count = ids[0].size
    result = judge(8, f"{what}, {count} tokens", pair.dtype, [found], None if pair.dtype == "bfloat16" else 0.0)
    apart = np.argwhere(ids[0] != ids[1])
    if len(apart) == 0:
        return result
    row, column = (int(i) for i in apart[np.argmin(apart[:, 1])])
    note = f"row {row} differs from token {column} on"
    allowed = tolerance("logits", pair.dtype)
    if allowed is not None and options.temperature == 0:
        read = [*prompts[row], *(int(token) for token in ids[0][row, :column])][-pair.context :]
        logits = pair.torch.logits(np.array([read], np.int32))[0, -1].astype(np.float64)
        second, first = np.sort(logits)[-2:]
        if first - second <= allowed * np.abs(logits).max():
            return replace(result, verdict="pass", note=f"{note}, where two tokens are equally likely")
    return replace(result, note=note)


def third_implementation(pair: Pair, options: "Options") -> Iterator[Result]:
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
    from parity.huggingface import write_folder

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
