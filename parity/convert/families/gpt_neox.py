"""GPT-NeoX and Pythia: parallel branches, a part of each head rotated (Black et al. 2022, arXiv:2204.06745)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields, Held
from parity.convert.families.common import read_decoder, read_rope, rotary_part, write_decoder, write_rope
from parity.convert.families.layout import INTERLEAVED

__all__ = ["GPT_NEOX"]

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu"}


def read(fields: Fields) -> dict[str, Any]:
    fields.ignore("hidden_dropout", "classifier_dropout", "is_decoder")
    activation = fields.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        fields.problem("hidden_act", activation, f"one of {', '.join(ACTIVATIONS)}")
    sizes = read_decoder(fields, eps=("layer_norm_eps", 1e-5))
    theta, rotated = fields.get("rotary_emb_base", 10000.0), fields.get("rotary_pct", 0.25)
    return (
        sizes
        | read_rope(fields, theta, rotated, partial=True)
        | {
            "n_kv_heads": 0,
            "norm": "layernorm",
            "mlp": ACTIVATIONS.get(activation, "gelu"),
            "bias": True if fields.flag("attention_bias", default=True) else "mlp",
            "parallel_residual": fields.flag("use_parallel_residual", default=True),
        }
    )


def write(model: ModelConfig) -> dict[str, Any]:
    others = {"num_key_value_heads", "head_dim"}
    sizes = {name: value for name, value in write_decoder(model, "layer_norm_eps").items() if name not in others}
    rope = write_rope(model)
    return sizes | {
        "rotary_emb_base": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
        "rotary_pct": 1.0,
        **rotary_part(model, "rotary_pct"),
        "hidden_act": next((name for name, ours in ACTIVATIONS.items() if ours == model.mlp), "gelu"),
        "attention_bias": model.biased("q_proj"),
        "use_parallel_residual": model.parallel_residual,
        "hidden_dropout": 0.0,
    }


def _layers(modules: dict[str, Held | str]) -> dict[str, Held | str]:
    return {f"gpt_neox.layers.*.{name}": held for name, held in modules.items()}


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    title="a GPT-NeoX",
    read=read,
    write=write,
    modules={
        "gpt_neox.embed_in": "model.embed_tokens",
        "gpt_neox.final_layer_norm": "model.norm",
        "embed_out": "lm_head",
    }
    | _layers(
        {
            "input_layernorm": "model.layers.*.input_layernorm",
            "attention.query_key_value": Held([f"model.layers.*.self_attn.{name}_proj" for name in "qkv"], INTERLEAVED),
            "attention.dense": "model.layers.*.self_attn.o_proj",
            "post_attention_layernorm": "model.layers.*.post_attention_layernorm",
            "mlp.dense_h_to_4h": "model.layers.*.mlp.up_proj",
            "mlp.dense_4h_to_h": "model.layers.*.mlp.down_proj",
        }
    ),
    prefix="gpt_neox.",
    buffers=r".*\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
)
