"""Phi-3 and Phi-4-mini: a Llama with fused matrices, and a part of each head rotated (arXiv:2404.14219)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields, Held
from parity.convert.families.common import (
    read_decoder,
    read_layers,
    read_rope,
    rotary_part,
    write_decoder,
    write_rope,
)

__all__ = ["PHI3"]


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "swish")
    fields.only("attention_bias", False, None)
    fields.ignore("original_max_position_embeddings", "embd_pdrop", "resid_pdrop")
    sizes = read_decoder(fields, max_seq_len=4096, eps=("rms_norm_eps", 1e-5))
    return (
        sizes
        | read_rope(fields, partial=True, types=("default",))
        | read_layers(fields, ["sliding"], fields.raw("sliding_window", None))
    )


def write(model: ModelConfig) -> dict[str, Any]:
    own = {
        "hidden_act": "silu",
        "sliding_window": model.sliding_window or None,
        "original_max_position_embeddings": model.max_seq_len,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }
    return write_decoder(model) | write_rope(model) | rotary_part(model, "partial_rotary_factor") | own


PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    title="a Phi-3",
    read=read,
    write=write,
    modules={
        "model.layers.*.self_attn.qkv_proj": Held([f"model.layers.*.self_attn.{name}_proj" for name in "qkv"]),
        "model.layers.*.mlp.gate_up_proj": Held(["model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"]),
    },
)
