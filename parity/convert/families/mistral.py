"""Mistral: a Llama whose layers may all have a sliding window (Jiang et al. 2023, arXiv:2310.06825)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import read_decoder, read_layers, read_rope, write_decoder, write_rope

__all__ = ["MISTRAL"]


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "swish")
    sizes = read_decoder(fields, max_seq_len=4096 * 32, n_kv_heads=8)
    return sizes | read_rope(fields) | read_layers(fields, ["sliding"], fields.raw("sliding_window", 4096))


def write(model: ModelConfig) -> dict[str, Any]:
    own = {"hidden_act": "silu", "sliding_window": model.sliding_window or None}
    return write_decoder(model) | write_rope(model) | own


MISTRAL = Family(model_type="mistral", architecture="MistralForCausalLM", title="a Mistral", read=read, write=write)
