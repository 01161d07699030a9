"""Granite: a Llama with factors of embeddings, attention, branches and logits (IBM 2024)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import read_decoder, read_rope, scale, write_decoder, write_rope
from parity.convert.families.llama import read_biases, write_biases

__all__ = ["GRANITE"]


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "swish")
    sizes = read_decoder(fields)
    heads = sizes["head_dim"] or (sizes["dim"] or 0) // (sizes["n_heads"] or 1)
    return {
        **sizes,
        **read_rope(fields),
        **read_biases(fields),
        "embedding_scale": fields.get("embedding_multiplier", 1.0, "embedding_scale"),
        "residual_scale": fields.get("residual_multiplier", 1.0, "residual_scale"),
        "attention_scale": scale(fields.get("attention_multiplier", 1.0, "attention_scale"), heads),
        "logit_divisor": fields.get("logits_scaling", 1.0, "logit_divisor"),
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_decoder(model),
        **write_rope(model),
        **write_biases(model),
        "hidden_act": "silu",
        "embedding_multiplier": model.embedding_scale,
        "residual_multiplier": model.residual_scale,
        "attention_multiplier": model.attention_scale or model.head_dim**-0.5,
        "logits_scaling": model.logit_divisor,
    }


GRANITE = Family(model_type="granite", architecture="GraniteForCausalLM", title="a Granite", read=read, write=write)
