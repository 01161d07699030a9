"""Rung 9: a third implementation, `transformers`, with the same weights."""

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

from lmcore.config import ModelConfig
from lmcore.errors import UserError
from lmcore.model.rope import rope_tables
from parity.backends.base import CANONICAL, Pair
from parity.check.result import Result, judge
from parity.check.rungs.base import Options
from parity.convert import names as mapping
from parity.convert.families import family_of
from parity.difference import difference, tolerance

__all__ = ["our_tables", "third_implementation", "without_islands"]

ISLANDS = "norms, softmax, rotary angles and scales of embeddings"
"""What transformers computes in float32, whatever the dtype of the model."""


def third_implementation(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 9: transformers' model with the same weights, adapters merged, read from a folder as any user would.

    In float64 too, transformers computes norms, softmax, rotary angles and scales of embeddings in float32. There it
    computes once more with float64 in their place, and is compared with the tolerance of float64. The error of an angle
    at position p is up to p roundings, which long contexts show in either dtype; so our tables of angles are compared.
    """
    if reason := _left_out(pair):
        yield Result(rung=9, what="transformers", dtype=pair.dtype, verdict="skipped", note=reason)
        return
    from parity.convert.huggingface import write_folder
    from parity.convert.tensors import Tensors, merge_adapters

    with tempfile.TemporaryDirectory() as folder:
        model_config, params = pair.config.model, Tensors.of(pair.start)
        if model_config.lora is not None:
            params = merge_adapters(params, model_config, CANONICAL)
            model_config = replace(model_config, lora=None)
        weights = mapping.convert_names(dict(params), model_config, CANONICAL, "hf")
        try:
            write_folder(Path(folder), replace(pair.config, model=model_config), weights, None)
        except UserError as error:
            yield Result(rung=9, what="transformers", dtype=pair.dtype, verdict="skipped", note=str(error))
            return
        model = load(Path(folder), pair.dtype)
    rows = pair.rows(2, pair.context + 1)
    ours, _ = pair.each("third", lambda twin: pair.loaded(twin).logits(rows[:, :-1]))
    (total, count), _ = pair.each("third loss", lambda twin: pair.loaded(twin).evaluate(rows[:, :-1], rows[:, 1:]))
    logits, _ = _answer(model, rows)
    own = difference("logits", ours, logits).max_rel
    with our_tables(model, pair.config.model):
        logits, loss = _answer(model, rows)
        narrow = difference("logits", ours, logits).max_rel
        if pair.dtype == "float64":
            with without_islands(model):
                logits, loss = _answer(model, rows)
    differences = [difference("logits", ours, logits), difference("mean loss", total / count, loss)]
    note = f"with our rotary angles; with its own, in float32, {own:.1e}"
    if pair.dtype == "float64":
        note = f"with float64 for its float32 in {ISLANDS}; else {narrow:.1e}, and {own:.1e} with its own angles"
    what, limit = f"transformers, logits and loss, {len(rows)} × {rows.shape[1] - 1}", tolerance("logits", pair.dtype)
    yield judge(9, what, pair.dtype, differences, limit, note)


def _left_out(pair: Pair) -> str:
    """Return why transformers cannot be compared, or an empty string."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    if pair.dtype == "bfloat16":
        return "transformers' bfloat16 rounds the parameters too: another model"
    try:
        family_of(pair.config.model)
    except UserError as error:
        return str(error)
    return ""


def load(folder: Path, dtype: str) -> Any:
    """Load the model in `folder`, with the attention that its family has for certain."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        options = {"dtype": getattr(torch, dtype), "attn_implementation": "eager"}
        return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def _answer(model: Any, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the logits B T V and the mean loss in nats of token ids B T1."""
    import torch

    tokens = torch.from_numpy(rows).long()
    with torch.inference_mode():
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return logits.numpy(), float(loss)


@contextlib.contextmanager
def without_islands(model: Any) -> Iterator[None]:
    """Let transformers compute in float64 where it says float32."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.float:
                return args[0].double()

            def wide(value: Any) -> Any:
                return torch.float64 if value is torch.float32 else value

            return function(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})

    with Wide(), contextlib.ExitStack() as stack:
        for module in model.modules():
            if hasattr(module, "scalar_embed_scale"):  # Gemma's
                exact = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
                stack.enter_context(mock.patch.dict(module._buffers, {"embed_scale": exact}))
        yield


@contextlib.contextmanager
def our_tables(model: Any, config: ModelConfig) -> Iterator[None]:
    """Let transformers' rotary module take its values from our tables."""
    import torch

    half, rotated = config.head_dim // 2, config.rotary_dim // 2

    def tables(x: Any, position_ids: Any, layer_type: str = "full_attention") -> tuple[Any, Any]:
        kind = "sliding" if layer_type == "sliding_attention" else "full"
        cos, sin = map(torch.tensor, rope_tables(config, kind))
        cos, sin = cos[:, :rotated].tile(2), sin[:, half : half + rotated].tile(2)  # its rotation applies the sign
        return cos[position_ids].to(x.dtype), sin[position_ids].to(x.dtype)

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if type(module).__name__.endswith("RotaryEmbedding"):
                stack.enter_context(mock.patch.object(module, "forward", tables))
        yield
