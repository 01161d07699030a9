"""Gemma 2: a Gemma with sandwich norms, soft caps, and a window in every other layer (arXiv:2408.00118)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import layer_types, read_layers, read_rope, scale
from parity.convert.families.gemma import read_gemma, write_gemma

__all__ = ["GEMMA2", "SANDWICH", "read_scores", "write_scores"]

SANDWICH = {
    "model.layers.*.post_attention_layernorm": "model.layers.*.attention_output_layernorm",
    "model.layers.*.pre_feedforward_layernorm": "model.layers.*.post_attention_layernorm",
    "model.layers.*.post_feedforward_layernorm": "model.layers.*.mlp_output_layernorm",
}
"""The norms, whose names in a Llama mean other places."""


def read_scores(fields: Fields, head_dim: int, caps: tuple[float, float]) -> dict[str, Any]:
    """Return our fields for attention scores and logits; `caps` are the defaults of their soft caps, 0 for none."""
    scalar = fields.get("query_pre_attn_scalar", 256, "attention_scale")
    if not isinstance(scalar, int | float) or not scalar > 0:
        fields.problem("query_pre_attn_scalar", scalar, "a number more than 0")
        return {}
    return {
        "norm_placement": "sandwich",
        "attention_scale": scale(scalar**-0.5, head_dim),
        "attention_softcap": fields.raw("attn_logit_softcapping", caps[0], "attention_softcap") or 0.0,
        "logit_softcap": fields.raw("final_logit_softcapping", caps[1], "logit_softcap") or 0.0,
    }


def write_scores(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of `config.json` for attention scores, logits and windows."""
    scalar = model.attention_scale**-2 if model.attention_scale else model.head_dim
    whole = max(1, round(scalar))
    return {
        "query_pre_attn_scalar": whole if scale(whole**-0.5, model.head_dim) == model.attention_scale else scalar,
        "attn_logit_softcapping": model.attention_softcap or None,
        "final_logit_softcapping": model.logit_softcap or None,
        "sliding_window": model.sliding_window or None,
        "layer_types": layer_types(model),
    }


def read(fields: Fields) -> dict[str, Any]:
    sizes, count = read_gemma(fields, 8192, 4), fields.get("num_hidden_layers", 0)
    alternating = ["full" if layer % 2 else "sliding" for layer in range(count)]
    kinds = read_layers(fields, alternating, fields.raw("sliding_window", 4096))
    return sizes | read_rope(fields) | kinds | read_scores(fields, sizes["head_dim"], (50.0, 30.0))


def write(model: ModelConfig) -> dict[str, Any]:
    return write_gemma(model) | write_scores(model)


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    title="a Gemma 2",
    read=read,
    write=write,
    modules=SANDWICH,
)
