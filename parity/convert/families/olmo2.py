"""OLMo 2: norms of each branch's output, and of all heads' queries and keys (OLMo et al. 2025, arXiv:2501.00656)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import read_decoder, read_rope, write_decoder, write_rope

__all__ = ["OLMO2"]


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "swish")
    fields.only("clip_qkv", None)
    bias = "attention" if fields.flag("attention_bias") else False
    own = {"norm_placement": "output", "qk_norm": "all_heads", "bias": bias}
    return read_decoder(fields, eps=("rms_norm_eps", 1e-5)) | read_rope(fields) | own


def write(model: ModelConfig) -> dict[str, Any]:
    own = {"hidden_act": "silu", "attention_bias": model.biased("o_proj")}
    return write_decoder(model) | write_rope(model) | own


OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    title="an OLMo 2",
    read=read,
    write=write,
    modules={
        "model.layers.*.post_attention_layernorm": "model.layers.*.attention_output_layernorm",
        "model.layers.*.post_feedforward_layernorm": "model.layers.*.mlp_output_layernorm",
    },
)
