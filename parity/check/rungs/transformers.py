"""Rung 9: a third implementation, `transformers`, with the same weights."""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lmcore.config import ModelConfig
from lmcore.errors import UserError
from lmcore.model.rope import rope_tables
from parity.backends.base import CANONICAL, Pair
from parity.check.result import Result, judge
from parity.check.rungs.base import Options
from parity.convert import names as mapping
from parity.difference import difference, tolerance

__all__ = ["third_implementation"]


def third_implementation(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 9: transformers' Llama with the same weights, read from a folder as any user would.

    In float64 too, transformers computes norms, softmax and rotary angles in float32: a known difference, for which the
    tolerance of float32 applies. The error of an angle at position p is up to p roundings, which long contexts show in
    either dtype; so transformers computes once more with our tables, and is compared with them.
    """
    if reason := _left_out(pair):
        yield Result(rung=9, what="transformers", dtype=pair.dtype, verdict="skipped", note=reason)
        return
    from parity.convert.huggingface import write_folder

    with tempfile.TemporaryDirectory() as folder:
        params = mapping.convert_names(pair.start, pair.config.model, CANONICAL, "hf")
        try:
            write_folder(Path(folder), pair.config, params, None)
        except UserError as error:
            yield Result(rung=9, what="transformers", dtype=pair.dtype, verdict="skipped", note=str(error))
            return
        model = _transformers(Path(folder), pair.dtype)
    rows = pair.rows(2, pair.context + 1)
    ours, _ = pair.each("third", lambda twin: pair.loaded(twin).logits(rows[:, :-1]))
    (total, count), _ = pair.each("third loss", lambda twin: pair.loaded(twin).evaluate(rows[:, :-1], rows[:, 1:]))
    logits, _ = _answer(model, rows)
    own = difference("logits", ours, logits).max_rel
    with _our_tables(model, pair.config.model):
        logits, loss = _answer(model, rows)
    differences = [difference("logits", ours, logits), difference("mean loss", total / count, loss)]
    note = "norms and softmax in float32; " * (pair.dtype == "float64")
    note += f"with our rotary angles; with its own, in float32, {own:.1e}"
    what, limit = f"transformers, logits and loss, {len(rows)} × {rows.shape[1] - 1}", tolerance("logits", "float32")
    yield judge(9, what, pair.dtype, differences, limit, note)


def _left_out(pair: Pair) -> str:
    """Return why transformers cannot be compared, or an empty string."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    if pair.dtype == "bfloat16":
        return "transformers' bfloat16 rounds the parameters too: another model"
    return "; ".join(mapping.not_llama(pair.config.model))


def _transformers(folder: Path, dtype: str) -> Any:
    """Load the model in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def _answer(model: Any, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the logits B T V and the mean loss in nats of token ids B T1."""
    import torch

    tokens = torch.from_numpy(rows).long()
    with torch.inference_mode():
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return logits.numpy(), float(loss)


def _our_tables(model: Any, config: ModelConfig) -> Any:
    """Return a context in which transformers' rotary module takes its values from our tables."""
    import torch

    cos, sin = map(torch.tensor, rope_tables(config))
    sin = sin[:, config.head_dim // 2 :].tile(2)  # its rotation applies the sign

    def tables(x: Any, position_ids: Any) -> tuple[Any, Any]:
        return cos[position_ids].to(x.dtype), sin[position_ids].to(x.dtype)

    return mock.patch.object(model.model.rotary_emb, "forward", tables)
