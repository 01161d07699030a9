"""Qwen3: a Llama with norms of each head's queries and keys (Yang et al. 2025, arXiv:2505.09388)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import read_decoder, read_rope, write_decoder, write_rope
from parity.convert.families.qwen2 import read_windows, write_windows

__all__ = ["QWEN3"]


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "swish")
    sizes = read_decoder(fields, max_seq_len=32768, head_dim=128, n_kv_heads=32)
    bias = "attention" if fields.flag("attention_bias") else False
    return sizes | read_rope(fields) | read_windows(fields) | {"qk_norm": True, "bias": bias}


def write(model: ModelConfig) -> dict[str, Any]:
    own = {"hidden_act": "silu", "attention_bias": model.biased("o_proj")}
    return write_decoder(model) | write_rope(model) | write_windows(model) | own


QWEN3 = Family(model_type="qwen3", architecture="Qwen3ForCausalLM", title="a Qwen3", read=read, write=write)
