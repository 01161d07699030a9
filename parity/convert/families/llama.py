"""Llama 2 and 3, TinyLlama, SmolLM and SmolLM2 (Touvron et al. 2023, arXiv:2307.09288)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import read_decoder, read_rope, write_decoder, write_rope

__all__ = ["LLAMA", "read_biases", "write_biases"]

BIASES: dict[tuple[bool, bool], Any] = {
    (False, False): False,
    (True, False): "attention",
    (False, True): "mlp",
    (True, True): True,
}
"""`attention_bias` and `mlp_bias` -> `model.bias`."""


def read_biases(fields: Fields) -> dict[str, Any]:
    """Return our field for the biases of attention and feed-forward layers."""
    return {"bias": BIASES[fields.flag("attention_bias"), fields.flag("mlp_bias")]}


def write_biases(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of `config.json` for the biases."""
    return {"attention_bias": model.biased("o_proj"), "mlp_bias": model.biased("up_proj")}


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "swish")
    fields.only("sliding_window", None)
    fields.only("pretraining_tp", 1, None)
    kinds = fields.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        fields.problem("layer_types", kinds, "'full_attention' in each layer")
    return read_decoder(fields) | read_rope(fields) | read_biases(fields)


def write(model: ModelConfig) -> dict[str, Any]:
    return write_decoder(model) | write_rope(model) | write_biases(model) | {"hidden_act": "silu"}


LLAMA = Family(model_type="llama", architecture="LlamaForCausalLM", title="a Llama", read=read, write=write)
