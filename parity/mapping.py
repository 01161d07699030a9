"""The one table of names: JAX ↔ torch ↔ Hugging Face Llama, each row with its shape and its transform.

Weights, gradients and an optimizer's moments all pass through it. Nothing is guessed from a part of a name: an array
that no row names, a row that no array fills, and a wrong shape are mistakes, and all of them are reported together.

Letters in shapes: D model width, NH query heads × head width, KH key/value heads × head width, F feed-forward width,
V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np

from lmcore.config import ModelConfig
from lmcore.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "IDENTITY",
    "TRANSPOSE",
    "Row",
    "Side",
    "Transform",
    "convert_names",
    "convert_rows",
    "numpy_to_torch",
    "table",
    "torch_to_numpy",
]

Side = Literal["jax", "torch", "hf"]
"""Whose names: jaxlm's, torchlm's or those of Hugging Face's Llama."""


@dataclass(frozen=True)
class Transform:
    """How an array is laid out anew; no value changes."""

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    """From JAX's layout to that of torch and Hugging Face."""
    inverse: Callable[[np.ndarray], np.ndarray]
    """And back."""


IDENTITY = Transform("identity", lambda array: array, lambda array: array)
TRANSPOSE = Transform("transpose", np.transpose, np.transpose)
"""JAX stores a kernel input × output, torch and Hugging Face output × input."""


@dataclass(frozen=True)
class Row:
    """One parameter in all three."""

    jax: str
    """Dotted name, as in `jaxlm.functional`."""
    torch: str
    """Name in the state dict of `torchlm.model.Decoder`."""
    hf: str
    """Name in a Hugging Face Llama's `model.safetensors`."""
    shape: tuple[int, ...]
    """Shape in JAX."""
    transform: Transform
    """From JAX's layout to that of torch and Hugging Face."""

    def name(self, side: Side) -> str:
        """What the parameter is called on one side."""
        return {"jax": self.jax, "torch": self.torch, "hf": self.hf}[side]

    def shape_in(self, side: Side) -> tuple[int, ...]:
        """Its shape on one side."""
        return self.shape if side == "jax" else self.transform.forward(np.broadcast_to(np.int8(0), self.shape)).shape

    def convert(self, array: np.ndarray, source: Side, target: Side) -> np.ndarray:
        """The array in the target's layout, contiguous, bit for bit the same values."""
        if source == "jax" and target != "jax":
            array = self.transform.forward(array)
        elif source != "jax" and target == "jax":
            array = self.transform.inverse(array)
        return np.ascontiguousarray(array)


FIRST = (
    # JAX                   torch                  Hugging Face                 shape in JAX  transform
    ("embed_tokens.weight", "embed_tokens.weight", "model.embed_tokens.weight", ("V", "D"), IDENTITY),
)
EACH_LAYER = (
    ("input_layernorm.weight", "input_layernorm.weight", "input_layernorm.weight", ("D",), IDENTITY),
    ("self_attn.q_proj.kernel", "self_attn.q_proj.weight", "self_attn.q_proj.weight", ("D", "NH"), TRANSPOSE),
    ("self_attn.k_proj.kernel", "self_attn.k_proj.weight", "self_attn.k_proj.weight", ("D", "KH"), TRANSPOSE),
    ("self_attn.v_proj.kernel", "self_attn.v_proj.weight", "self_attn.v_proj.weight", ("D", "KH"), TRANSPOSE),
    ("self_attn.o_proj.kernel", "self_attn.o_proj.weight", "self_attn.o_proj.weight", ("NH", "D"), TRANSPOSE),
    ("post_attention_layernorm.weight", *["post_attention_layernorm.weight"] * 2, ("D",), IDENTITY),
    ("mlp.gate_proj.kernel", "mlp.gate_proj.weight", "mlp.gate_proj.weight", ("D", "F"), TRANSPOSE),
    ("mlp.up_proj.kernel", "mlp.up_proj.weight", "mlp.up_proj.weight", ("D", "F"), TRANSPOSE),
    ("mlp.down_proj.kernel", "mlp.down_proj.weight", "mlp.down_proj.weight", ("F", "D"), TRANSPOSE),
)
LAST = (("norm.weight", "norm.weight", "model.norm.weight", ("D",), IDENTITY),)
UNTIED = (("lm_head.kernel", "lm_head.weight", "lm_head.weight", ("D", "V"), TRANSPOSE),)


def table(config: ModelConfig) -> list[Row]:
    """Every parameter of a model, in reading order; an untied head comes last."""
    widths = {
        "V": config.vocab_size,
        "D": config.dim,
        "NH": config.n_heads * config.head_dim,
        "KH": config.n_kv_heads * config.head_dim,
        "F": config.ffn_dim,
    }

    def rows(templates: Iterable[tuple[Any, ...]], within: str = "", within_hf: str = "") -> list[Row]:
        return [
            Row(within + jax, within + torch, within_hf + hf, tuple(widths[letter] for letter in shape), transform)
            for jax, torch, hf, shape, transform in templates
        ]

    layers = [row for i in range(config.n_layers) for row in rows(EACH_LAYER, f"layers.{i}.", f"model.layers.{i}.")]
    return [*rows(FIRST), *layers, *rows(LAST), *rows([] if config.tie_embeddings else UNTIED)]


def convert_names(
    arrays: Mapping[str, np.ndarray], config: ModelConfig, source: Side, target: Side
) -> dict[str, np.ndarray]:
    """Rename and lay out anew all arrays of a model: weights, gradients or a moment.

    Args:
        arrays: name -> array on the source's side. A Hugging Face model with tied embeddings may hold `lm_head.weight`
            too, if it equals the embedding.
        config: shape of the model.
        source: side that the arrays come from.
        target: side that they go to.

    Returns:
        Name -> contiguous array on the target's side, in the table's order, with the same bits and type.

    Raises:
        UserError: arrays are missing, unknown or wrongly shaped; the message names each.
    """
    problems = []
    if source == "hf" and config.tie_embeddings and "lm_head.weight" in arrays:
        arrays = dict(arrays)
        head, embedding = arrays.pop("lm_head.weight"), arrays.get("model.embed_tokens.weight")
        if embedding is not None and not _same_bits(head, embedding):
            problems = ["lm_head.weight differs from model.embed_tokens.weight, though the embeddings are tied"]
    return convert_rows(arrays, table(config), source, target, problems)


def convert_rows(
    arrays: Mapping[str, np.ndarray], rows: Sequence[Row], source: Side, target: Side, problems: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """As `convert_names`, by any table.

    Args:
        arrays: name -> array on the source's side.
        rows: the table.
        source: side that the arrays come from.
        target: side that they go to.
        problems: what the caller has found already, to be reported with the rest.

    Raises:
        UserError: arrays are missing, unknown or wrongly shaped, or a name stands in two rows.
    """
    found = list(problems)
    known = Counter(row.name(source) for row in rows)
    filled = Counter(row.name(target) for row in rows)
    found += [f"{name} is read by {n} rows, expected one" for name, n in known.items() if n > 1]
    for name in (name for name, n in filled.items() if n > 1):
        sources = " and ".join(row.name(source) for row in rows if row.name(target) == name)
        found.append(f"{name} is filled twice, by {sources}")
    found += [f"{name} {list(array.shape)} is in no row" for name, array in arrays.items() if name not in known]
    for row in rows:
        name, expected = row.name(source), row.shape_in(source)
        if name not in arrays:
            found.append(f"{name} {list(expected)} is missing" + _unfilled(name, row.name(target)))
        elif arrays[name].shape != expected:
            found.append(f"{name} is {list(arrays[name].shape)}, expected {list(expected)}")
    if found:
        raise UserError(f"{source} arrays do not fit the table of names: {'; '.join(found)}")
    return {row.name(target): row.convert(arrays[row.name(source)], source, target) for row in rows}


def _unfilled(source: str, target: str) -> str:
    return "" if source == target else f", so nothing fills {target}"


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and one.tobytes() == other.tobytes()


def torch_to_numpy(tensor: "Tensor") -> np.ndarray:
    """A copy of the tensor's values, of any device; bfloat16, which NumPy lacks, as `ml_dtypes.bfloat16`."""
    import torch

    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return host.numpy().copy()


def numpy_to_torch(array: np.ndarray) -> "Tensor":
    """A tensor with a copy of the array's values, on the CPU."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
