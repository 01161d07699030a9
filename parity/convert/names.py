"""The one table of names: JAX ↔ torch ↔ Hugging Face Llama, each row with its shape and its transform.

Weights, gradients and an optimizer's moments are all converted by it. Nothing is guessed from a part of a name: an
array that no row names, a row that no array fills, and a wrong shape are errors, which are all reported together.

Letters in shapes: D model width, H head width, NH query heads × head width, KH key/value heads × head width,
F feed-forward width, V vocabulary, T positions, R rank of the adapters.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np

from lmcore.config import GATED, ModelConfig
from lmcore.errors import UserError
from lmcore.model.lora import is_trained

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
"""Whose names and layout: jaxlm's, torchlm's or those of Hugging Face's Llama."""


@dataclass(frozen=True)
class Transform:
    """A change of an array's layout; no value changes."""

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    """From JAX's layout to that of torch and Hugging Face."""
    inverse: Callable[[np.ndarray], np.ndarray]
    """From the layout of torch and Hugging Face to JAX's."""


IDENTITY = Transform("identity", lambda array: array, lambda array: array)
TRANSPOSE = Transform("transpose", np.transpose, np.transpose)
"""JAX stores a kernel input × output, torch and Hugging Face output × input."""


@dataclass(frozen=True)
class Row:
    """One parameter: its name on each side, its shape, and its change of layout."""

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
        """Return the parameter's name on one side."""
        return {"jax": self.jax, "torch": self.torch, "hf": self.hf}[side]

    def shape_in(self, side: Side) -> tuple[int, ...]:
        """Return the parameter's shape on one side."""
        return self.shape if side == "jax" else self.transform.forward(np.broadcast_to(np.int8(0), self.shape)).shape

    def convert(self, array: np.ndarray, source: Side, target: Side) -> np.ndarray:
        """Return the array in the target's layout, contiguous, with bitwise the same values.

        Args:
            array: of this parameter, in the source's layout.
            source: side that the array comes from.
            target: side that it goes to.
        """
        if source == "jax" and target != "jax":
            array = self.transform.forward(array)
        elif source != "jax" and target == "jax":
            array = self.transform.inverse(array)
        return np.ascontiguousarray(array)


Template = tuple[str, str, str, tuple[str, ...], Transform]


def _same(name: str, *shape: str) -> Template:
    """Return the template of a vector or an embedding, whose name and layout are the same on all sides."""
    return name, name, name, shape, IDENTITY


def _linear(name: str, inputs: str, outputs: str, bias: bool) -> list[Template]:
    """Return the templates of a linear layer: its kernel, and its bias if it has one."""
    kernel = (f"{name}.kernel", f"{name}.weight", f"{name}.weight", (inputs, outputs), TRANSPOSE)
    return [kernel, _same(f"{name}.bias", outputs)] if bias else [kernel]


def _adapters(config: ModelConfig, block: Sequence[Template]) -> list[Template]:
    """Return the templates of a block with those of its adapters, each after the kernel that it adapts."""
    targets = [] if config.lora is None else config.lora.targets
    rows: list[Template] = []
    for row in block:
        rows.append(row)
        layer = row[0].removesuffix(".kernel")
        if layer != row[0] and layer.rpartition(".")[2] in targets:
            inputs, outputs = row[3]
            rows += _linear(f"{layer}.lora_A", inputs, "R", bias=False)
            rows += _linear(f"{layer}.lora_B", "R", outputs, bias=False)
    return rows


def _norm(config: ModelConfig, name: str) -> list[Template]:
    leaves = {"layernorm": ("weight", "bias"), "none": ()}.get(config.norm, ("weight",))
    return [_same(f"{name}.{leaf}", "D") for leaf in leaves]


def _layer(config: ModelConfig) -> list[Template]:
    """Return the templates of one block, in reading order."""
    before, after = config.norm_placement in ("pre", "sandwich"), config.norm_placement != "pre"

    def linear(name: str, inputs: str, outputs: str) -> list[Template]:
        return _linear(name, inputs, outputs, config.biased(name.rpartition(".")[2]))

    def head_norm(name: str, all_heads: str) -> list[Template]:
        return [_same(name, all_heads if config.qk_norm == "all_heads" else "H")] if config.qk_norm else []

    return [
        *(_norm(config, "input_layernorm") if before else ()),
        *linear("self_attn.q_proj", "D", "NH"),
        *linear("self_attn.k_proj", "D", "KH"),
        *linear("self_attn.v_proj", "D", "KH"),
        *head_norm("self_attn.q_norm.weight", "NH"),
        *head_norm("self_attn.k_norm.weight", "KH"),
        *linear("self_attn.o_proj", "NH", "D"),
        *(_norm(config, "attention_output_layernorm") if after else ()),
        *(_norm(config, "post_attention_layernorm") if before else ()),
        *(linear("mlp.gate_proj", "D", "F") if config.mlp in GATED else ()),
        *linear("mlp.up_proj", "D", "F"),
        *linear("mlp.down_proj", "F", "D"),
        *(_norm(config, "mlp_output_layernorm") if after else ()),
    ]


def table(config: ModelConfig, trained: bool = False) -> list[Row]:
    """Return a row for every parameter of a model, in reading order; an untied head comes last.

    What a Llama has not got has a name of the same kind on Hugging Face's side; `families` has the names of others.

    Args:
        config: shape of the model.
        trained: whether to leave out the parameters that are not trained.
    """
    widths = {
        "V": config.vocab_size,
        "P": config.previous_tokens * config.vocab_size,
        "T": config.max_seq_len,
        "D": config.dim,
        "H": config.head_dim,
        "NH": config.n_heads * config.head_dim,
        "KH": config.n_kv_heads * config.head_dim,
        "F": config.ffn_dim,
        "R": 0 if config.lora is None else config.lora.rank,
    }

    def rows(templates: Iterable[Template], prefix: str = "", prefix_hf: str = "model.") -> list[Row]:
        return [
            Row(prefix + jax, prefix + torch, prefix_hf + hf, tuple(widths[letter] for letter in shape), transform)
            for jax, torch, hf, shape, transform in templates
        ]

    first = [_same("embed_tokens.weight", "V", "D")]
    if config.previous_tokens:
        first.append(_same("embed_previous.weight", "P", "D"))
    if config.position == "learned":
        first.append(_same("embed_positions.weight", "T", "D"))
    block = _adapters(config, _layer(config))
    layers = [row for i in range(config.n_layers) for row in rows(block, f"layers.{i}.", f"model.layers.{i}.")]
    last = [] if config.norm_placement == "post" else _norm(config, "norm")
    head = [] if config.tie_embeddings else _linear("lm_head", "D", "V", bias=False)
    every = [*rows(first), *layers, *rows(last), *rows(head, prefix_hf="")]
    return [row for row in every if not trained or is_trained(config, row.jax)]


def convert_names(
    arrays: Mapping[str, np.ndarray], config: ModelConfig, source: Side, target: Side, trained: bool = False
) -> dict[str, np.ndarray]:
    """Convert the names and layouts of all arrays of a model: weights, gradients or a moment.

    Args:
        arrays: name -> array on the source's side. A Hugging Face model with tied embeddings may hold `lm_head.weight`
            too, if it equals the embedding.
        config: shape of the model.
        source: side that the arrays come from.
        target: side that they go to.
        trained: whether the arrays are those of the trained parameters alone.

    Returns:
        Name -> contiguous array on the target's side, in the table's order, with the same bits and dtype.

    Raises:
        UserError: arrays are missing, unknown or wrongly shaped; the message names each.
    """
    problems = []
    if source == "hf" and config.tie_embeddings and "lm_head.weight" in arrays:
        arrays = dict(arrays)
        head, embedding = arrays.pop("lm_head.weight"), arrays.get("model.embed_tokens.weight")
        if embedding is not None and not _same_bits(head, embedding):
            problems = ["lm_head.weight differs from model.embed_tokens.weight, though the embeddings are tied"]
    return convert_rows(arrays, table(config, trained), source, target, problems)


def convert_rows(
    arrays: Mapping[str, np.ndarray], rows: Sequence[Row], source: Side, target: Side, problems: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Convert arrays as `convert_names` does, by any table.

    Args:
        arrays: name -> array on the source's side.
        rows: the table.
        source: side that the arrays come from.
        target: side that they go to.
        problems: what the caller has found already, reported with the rest.

    Raises:
        UserError: arrays are missing, unknown or wrongly shaped, or a name stands in two rows.
    """
    errors = list(problems)
    known = Counter(row.name(source) for row in rows)
    filled = Counter(row.name(target) for row in rows)
    errors += [f"{name} is read by {n} rows, expected one" for name, n in known.items() if n > 1]
    for name in (name for name, n in filled.items() if n > 1):
        sources = " and ".join(row.name(source) for row in rows if row.name(target) == name)
        errors.append(f"{name} is filled twice, by {sources}")
    errors += [f"{name} {list(array.shape)} is in no row" for name, array in arrays.items() if name not in known]
    for row in rows:
        name, expected = row.name(source), row.shape_in(source)
        if name not in arrays:
            errors.append(f"{name} {list(expected)} is missing" + _unfilled(name, row.name(target)))
        elif arrays[name].shape != expected:
            errors.append(f"{name} is {list(arrays[name].shape)}, expected {list(expected)}")
    if errors:
        raise UserError(f"{source} arrays do not fit the table of names: {'; '.join(errors)}")
    return {row.name(target): row.convert(arrays[row.name(source)], source, target) for row in rows}


def _unfilled(source: str, target: str) -> str:
    return "" if source == target else f", so nothing fills {target}"


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and one.tobytes() == other.tobytes()


def torch_to_numpy(tensor: "Tensor") -> np.ndarray:
    """Copy a tensor from any device to NumPy; bfloat16, which NumPy lacks, becomes `ml_dtypes.bfloat16`."""
    import torch

    host = tensor.detach().cpu().resolve_conj().contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return host.numpy().copy()


def numpy_to_torch(array: np.ndarray) -> "Tensor":
    """Copy an array to a tensor on the CPU."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
