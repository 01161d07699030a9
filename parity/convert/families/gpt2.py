"""GPT-2: learned positions, LayerNorm, biases and GELU (Radford et al. 2019)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields, Held
from parity.convert.families.layout import CONV1D

__all__ = ["GPT2"]

SIZES = {"vocab_size": "vocab_size", "n_embd": "dim", "n_layer": "n_layers", "n_head": "n_heads"}
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def read(fields: Fields) -> dict[str, Any]:
    fields.ignore("n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop")
    fields.ignore(*(name for name in fields.values if name.startswith("summary_")))  # of another head
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.only("add_cross_attention", False)
    fields.ignore("reorder_and_upcast_attn")
    activation = fields.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        fields.problem("activation_function", activation, f"one of {', '.join(ACTIVATIONS)}")
    values = {ours: fields.require(name, ours) for name, ours in SIZES.items()}
    return values | {
        "ffn_dim": fields.get("n_inner", 4 * (values["dim"] or 0), "ffn_dim"),
        "max_seq_len": fields.get("n_positions", 1024, "max_seq_len"),
        "norm_eps": fields.get("layer_norm_epsilon", 1e-5, "norm_eps"),
        "tie_embeddings": fields.get("tie_word_embeddings", True, "tie_embeddings"),
        "position": "learned",
        "norm": "layernorm",
        "mlp": ACTIVATIONS.get(activation, "gelu"),
        "bias": True,
    }


def write(model: ModelConfig) -> dict[str, Any]:
    return {name: getattr(model, ours) for name, ours in SIZES.items()} | {
        "n_inner": model.ffn_dim,
        "n_positions": model.max_seq_len,
        "n_ctx": model.max_seq_len,
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "activation_function": next((name for name, ours in ACTIVATIONS.items() if ours == model.mlp), "gelu_new"),
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def _layers(modules: dict[str, Held | str]) -> dict[str, Held | str]:
    return {f"transformer.h.*.{name}": held for name, held in modules.items()}


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    title="a GPT-2",
    read=read,
    write=write,
    modules={
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": "model.embed_positions",
        "transformer.ln_f": "model.norm",
    }
    | _layers(
        {
            "ln_1": "model.layers.*.input_layernorm",
            "attn.c_attn": Held([f"model.layers.*.self_attn.{name}_proj" for name in "qkv"], CONV1D),
            "attn.c_proj": Held(["model.layers.*.self_attn.o_proj"], CONV1D),
            "ln_2": "model.layers.*.post_attention_layernorm",
            "mlp.c_fc": Held(["model.layers.*.mlp.up_proj"], CONV1D),
            "mlp.c_proj": Held(["model.layers.*.mlp.down_proj"], CONV1D),
        }
    ),
    prefix="transformer.",
    buffers=r".*\.attn\.(masked_)?bias",
)
