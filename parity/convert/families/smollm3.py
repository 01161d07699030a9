"""SmolLM3: a Llama of which every fourth layer has no RoPE (Hugging Face 2025)."""

from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Family, Fields
from parity.convert.families.common import read_decoder, read_layers, read_rope, write_decoder, write_rope
from parity.convert.families.llama import read_biases, write_biases

__all__ = ["SMOLLM3"]


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "swish")
    fields.only("pretraining_tp", 1, 2, None)  # transformers computes the same with any
    fields.only("use_sliding_window", False)
    fields.ignore("sliding_window", "max_window_layers", "layer_types")
    sizes = read_decoder(fields, tie=True, max_seq_len=32768, n_kv_heads=4)
    count, interval = fields.get("num_hidden_layers", 0), fields.get("no_rope_layer_interval", 4)
    rotated = fields.get("no_rope_layers")  # 1 for a layer with RoPE
    if rotated is None:
        rotated = [int((layer + 1) % interval != 0) for layer in range(count)]
    elif not isinstance(rotated, list) or len(rotated) < count or any(one not in (0, 1) for one in rotated):
        fields.problem("no_rope_layers", rotated, f"a list of {count} numbers, 0 or 1")
        return {}
    layers = Fields({"num_hidden_layers": count})
    kinds = read_layers(layers, ["full" if one else "nope" for one in rotated[:count]], None)
    return sizes | read_rope(fields, theta=2000000.0) | read_biases(fields) | kinds


def write(model: ModelConfig) -> dict[str, Any]:
    rotated = [int(model.layer_type(layer) != "nope") for layer in range(model.n_layers)]
    own = {
        "hidden_act": "silu",
        "no_rope_layers": rotated,
        "layer_types": ["full_attention"] * model.n_layers,
        "use_sliding_window": False,
    }
    return write_decoder(model) | write_rope(model) | write_biases(model) | own


SMOLLM3 = Family(model_type="smollm3", architecture="SmolLM3ForCausalLM", title="a SmolLM3", read=read, write=write)
