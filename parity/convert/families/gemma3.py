"""Gemma 3, its text model: a Gemma 2 with norms of queries and keys instead of soft caps (arXiv:2503.19786)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import read_layers, read_rope
from parity.convert.families.gemma import read_gemma, write_gemma
from parity.convert.families.gemma2 import SANDWICH, read_scores, write_scores

__all__ = ["GEMMA3"]


def read(fields: Fields) -> dict[str, Any]:
    sizes, count = read_gemma(fields, 131072, 4), fields.get("num_hidden_layers", 0)
    every = fields.get("sliding_window_pattern", fields.get("_sliding_window_pattern", 6))
    kinds = ["sliding" if (layer + 1) % every else "full" for layer in range(count)]
    layers = read_layers(fields, kinds, fields.raw("sliding_window", 4096))
    nested = fields.get("rope_parameters") or {}
    local = nested.get("sliding_attention") or {} if isinstance(nested, dict) else {}
    if local.get("rope_type", "default") != "default":
        fields.problem("rope_parameters.sliding_attention.rope_type", local["rope_type"], "'default'")
    theta = local.get("rope_theta", fields.get("rope_local_base_freq", 10000.0))
    scores = read_scores(fields, sizes["head_dim"], (0.0, 0.0))
    own = {"qk_norm": True} | ({"sliding_rope_theta": theta} if layers.get("sliding_window") else {})
    return sizes | read_rope(fields, theta=1000000.0) | layers | scores | own


def write(model: ModelConfig) -> dict[str, Any]:
    local = {"rope_local_base_freq": model.sliding_rope_theta} if model.sliding_rope_theta else {}
    return write_gemma(model) | write_scores(model) | local


GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    title="a Gemma 3",
    read=read,
    write=write,
    modules=SANDWICH,
)
