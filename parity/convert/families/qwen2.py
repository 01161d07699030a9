"""Qwen2 and Qwen2.5: a Llama with biases of queries, keys and values (Yang et al. 2024, arXiv:2407.10671)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import (
    layer_types,
    read_decoder,
    read_layers,
    read_rope,
    write_decoder,
    write_rope,
)

__all__ = ["QWEN2", "read_windows", "write_windows"]


def read_windows(fields: Fields) -> dict[str, Any]:
    """Return our fields for the sliding window, which begins at layer `max_window_layers` where it is used."""
    used, window = fields.get("use_sliding_window", False), fields.raw("sliding_window", 4096)
    full, count = fields.get("max_window_layers", 28), fields.get("num_hidden_layers", 0)
    default = ["full" if layer < full else "sliding" for layer in range(count)]
    return read_layers(fields, default, window if used else None)


def write_windows(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of `config.json` for the sliding window."""
    kinds = layer_types(model)
    first = kinds.index("sliding_attention") if "sliding_attention" in kinds else model.n_layers
    return {
        "use_sliding_window": first < model.n_layers,
        "sliding_window": model.sliding_window or None,
        "max_window_layers": first,
        "layer_types": kinds,
    }


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "swish")
    sizes = read_decoder(fields, max_seq_len=32768, n_kv_heads=32)
    return sizes | read_rope(fields) | read_windows(fields) | {"bias": "qkv"}


def write(model: ModelConfig) -> dict[str, Any]:
    return write_decoder(model) | write_rope(model) | write_windows(model) | {"hidden_act": "silu"}


QWEN2 = Family(model_type="qwen2", architecture="Qwen2ForCausalLM", title="a Qwen2", read=read, write=write)
