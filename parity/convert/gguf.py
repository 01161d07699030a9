"""Models as GGUF files, which llama.cpp runs: metadata, tokenizer and tensors, written one tensor at a time.

llama.cpp's `llama` rotates neighbouring pairs of a head's values, ours the two halves, so the rows of query and key
projections are reordered; its `qwen3` rotates halves, and normalizes queries and keys.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmcore.config import ModelConfig
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.model.rope import frequencies
from parity.convert.companions import Companions
from parity.convert.families import LLAMA, QWEN3
from parity.convert.tensors import Stored, Tensors, row_blocks
from parity.convert.vocabulary import tokenizer_fields

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

__all__ = ["DTYPES", "Dtype", "model_fields", "tensor_name", "write_gguf", "write_model"]

Dtype = Literal["f32", "f16", "bf16", "q8_0"]
DTYPES: dict[Dtype, tuple[str, str]] = {
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
"""Our name -> name of the type of matrices, and of the file; vectors are float32 in all."""

NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Our module -> llama.cpp's."""


@dataclass(frozen=True)
class Encoded:
    """A tensor as it will stand in the file."""

    stored: Stored
    kind: "GGMLQuantizationType"
    permute: Callable[[np.ndarray], np.ndarray]
    """Change of the order of rows."""


def write_gguf(
    path: Path,
    name: str,
    model: ModelConfig,
    weights: Tensors,
    tokenizer: Tokenizer | None,
    companions: Companions,
    dtype: Dtype,
) -> list[str]:
    """Write a model and its tokenizer to a GGUF file.

    Args:
        path: the file.
        name: of the model, for people.
        model: its shape.
        weights: by torchlm's names.
        tokenizer: its tokenizer.
        companions: files of the folder that the model was imported from, which may have a chat template.
        dtype: of the matrices.

    Returns:
        What a reader of the file should know, a sentence each.

    Raises:
        UserError: the format cannot hold the model or its tokenizer, or `gguf` is not installed.
    """
    if tokenizer is None:
        raise UserError("--to gguf: found no tokenizer.json, which the file would hold; add one to the source")
    text = tokenizer_fields(tokenizer, model.vocab_size)
    return write_model(path, name, model, weights, text, companions.chat_template(), dtype)


def write_model(
    path: Path,
    name: str,
    model: ModelConfig,
    weights: Tensors,
    text: Mapping[str, Any],
    chat_template: str | None,
    dtype: Dtype,
) -> list[str]:
    """Write a GGUF file; arguments, result and errors are those of `write_gguf`, but for these.

    Args:
        text: what the file says of the tokenizer, by the part of a field's name after `tokenizer.ggml.`; with `model`
            `no_vocab`, there is none.
        chat_template: Jinja, if any.
    """
    try:
        from gguf import GGUFWriter, LlamaFileType
    except ImportError as error:
        raise UserError("--to gguf: the package gguf is not installed; pip install 'twinlm[gguf]'") from error
    architecture = _architecture(model)
    tensors, notes = _encode(model, weights, architecture, dtype)
    writer = GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[DTYPES[dtype][1]])
    writer.add_quantization_version(2)
    for field, value in model_fields(model).items():
        _add(writer, f"{architecture}.{field}", value)
    for field, value in text.items():
        numbered = [value.get(i, 0.0) for i in range(model.vocab_size)] if field == "scores" else value
        _add(writer, f"tokenizer.ggml.{field}", numbered)
    if chat_template:
        writer.add_chat_template(chat_template)
    _write(writer, tensors)
    return notes


def _architecture(model: ModelConfig) -> str:
    """Return llama.cpp's name of the architecture.

    Raises:
        UserError: it has none for this model.
    """
    problems = (QWEN3 if model.qk_norm else LLAMA).differences(model)
    if model.rope_scaling and model.rope_scaling.type != "llama3":
        problems.append(f"model.rope_scaling.type: found {model.rope_scaling.type!r}, expected 'llama3'")
    problems += [
        f"model.{name}: found {getattr(model, name)} with qk_norm, which qwen3 has not"
        for name in ("bias", "rope_scaling")
        if model.qk_norm and getattr(model, name)
    ]
    if problems:
        raise UserError(f"--to gguf: {'; '.join(problems)}; keep the model in another format")
    return "qwen3" if model.qk_norm else "llama"


def model_fields(model: ModelConfig) -> dict[str, int | float]:
    """Return the fields that describe a model's shape, by the part of their name after the architecture."""
    return {
        "vocab_size": model.vocab_size,
        "context_length": model.max_seq_len,
        "embedding_length": model.dim,
        "block_count": model.n_layers,
        "feed_forward_length": model.ffn_dim,
        "attention.head_count": model.n_heads,
        "attention.head_count_kv": model.n_kv_heads,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        "attention.layer_norm_rms_epsilon": float(model.norm_eps),
        "rope.dimension_count": model.head_dim,
        "rope.freq_base": float(model.rope_theta),
    }


def _add(writer: "GGUFWriter", name: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case _:
            writer.add_array(name, value)


def tensor_name(ours: str) -> str:
    """Return llama.cpp's name of one of our parameters, such as `blk.0.attn_q.weight`."""
    match = re.fullmatch(r"(?:layers\.(\d+)\.)?(.+)\.(weight|bias)", ours)
    assert match is not None, ours
    layer, module, leaf = match.groups()
    return (f"blk.{layer}." if layer else "") + f"{NAMES[module]}.{leaf}"


def interleaved(head_dim: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that moves the rows of each head from halves (2, H/2) to pairs (H/2, 2)."""

    def permute(array: np.ndarray) -> np.ndarray:
        heads = array.reshape(-1, 2, head_dim // 2, *array.shape[1:])
        return heads.swapaxes(1, 2).reshape(array.shape)

    return permute


def _encode(
    model: ModelConfig, weights: Tensors, architecture: str, dtype: Dtype
) -> tuple[dict[str, Encoded], list[str]]:
    """Return every tensor with its type and the order of its rows, and what a reader should know of them."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    wanted = GGMLQuantizationType[DTYPES[dtype][0]]
    block, _ = GGML_QUANT_SIZES[wanted]
    tensors, notes, uneven = {}, [], 0
    for ours, stored in weights.stored.items():
        kind = wanted if len(stored.shape) > 1 else GGMLQuantizationType.F32
        if len(stored.shape) > 1 and stored.shape[-1] % block:
            kind, uneven = GGMLQuantizationType.F16, uneven + 1
        rotated = architecture == "llama" and re.search(r"\.[qk]_proj\.", ours)
        permute = interleaved(model.head_dim) if rotated else lambda array: array
        tensors[tensor_name(ours)] = Encoded(stored, kind, permute)
    if uneven:
        notes.append(f"{uneven} matrices are stored as f16, since their rows are no multiple of {block} values")
    if any(each.stored.dtype == np.float64 for each in tensors.values()):
        notes.append("float64 weights were rounded to float32 first; llama.cpp has no more")
    if model.rope_scaling is not None:
        factors = frequencies(model.head_dim, model.rope_theta, None)
        factors = (factors / frequencies(model.head_dim, model.rope_theta, model.rope_scaling)).astype(np.float32)
        stored = Stored(factors.shape, factors.dtype, lambda: factors)
        tensors["rope_freqs.weight"] = Encoded(stored, GGMLQuantizationType.F32, lambda array: array)
        notes.append("rope_scaling is in rope_freqs.weight, which llama.cpp reads; transformers ignores it")
    if model.qk_norm and model.head_dim != 128:
        notes.append("transformers reads query and key norms with a head_dim of 128 alone; llama.cpp with any")
    if model.bias:
        notes.append("biases are read by llama.cpp; transformers ignores them")
    return tensors, notes


def _write(writer: "GGUFWriter", tensors: dict[str, Encoded]) -> None:
    """Write the header and then every tensor in blocks, as `write_tensor_data` does with a whole one."""
    from gguf import GGML_QUANT_SIZES, quantize

    for name, each in tensors.items():
        block, size = GGML_QUANT_SIZES[each.kind]
        nbytes = int(np.prod(each.stored.shape, dtype=np.int64)) // block * size
        writer.add_tensor_info(name, each.stored.shape, np.dtype(np.float32), nbytes, each.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        [file] = writer.fout
        writer.write_padding(file, file.tell())
        for name, each in tensors.items():
            begin = file.tell()
            for rows in row_blocks(each.permute(each.stored.read())):
                values = rows.astype(np.float32)
                with np.errstate(over="ignore"):  # it is reported by name
                    encoded = quantize(values, each.kind)
                if each.kind.name == "F16" and (np.isinf(encoded) & np.isfinite(values)).any():
                    raise UserError(f"--dtype: found f16, in which {name} would be infinite; take f32 or bf16")
                file.write(encoded.reshape(-1).view(np.uint8).data)
            writer.write_padding(file, file.tell() - begin)
    finally:
        writer.close()
