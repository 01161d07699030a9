"""Gemma: zero-centered norms, scaled embeddings and GeGLU (Gemma Team 2024, arXiv:2403.08295)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import read_decoder, read_rope, write_decoder, write_rope

__all__ = ["GEMMA", "read_gemma", "write_gemma"]


def read_gemma(fields: Fields, max_seq_len: int, n_kv_heads: int) -> dict[str, Any]:
    """Return the fields of our model that all Gemmas have, but for the rotary positions."""
    # The first configs say "gelu" in hidden_act, for the approximation.
    if (found := fields.get("hidden_activation", fields.get("hidden_act"))) not in (None, "gelu", "gelu_pytorch_tanh"):
        fields.problem("hidden_activation", found, "'gelu_pytorch_tanh'")
    fields.known.add("hidden_act")
    fields.only("use_bidirectional_attention", None, False)
    sizes = read_decoder(fields, tie=True, max_seq_len=max_seq_len, head_dim=256, n_kv_heads=n_kv_heads)
    return sizes | {
        "norm": "zero_centered_rmsnorm",
        "mlp": "geglu_tanh",
        "bias": "attention" if fields.flag("attention_bias") else False,
        "embedding_scale": float(sizes["dim"] or 1) ** 0.5,
    }


def write_gemma(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of `config.json` that all Gemmas have."""
    activation = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    return write_decoder(model) | write_rope(model) | activation | {"attention_bias": model.biased("o_proj")}


def read(fields: Fields) -> dict[str, Any]:
    return read_gemma(fields, 8192, 16) | read_rope(fields)


GEMMA = Family(model_type="gemma", architecture="GemmaForCausalLM", title="a Gemma", read=read, write=write_gemma)
