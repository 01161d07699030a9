"""The fields of a `config.json`: read with transformers' defaults, written back, and what differs named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lmcore.config import Config, ModelConfig, RopeScaling
from lmcore.errors import UserError
from parity.check.rungs.transformers import our_tables, without_islands
from parity.convert.families import FAMILIES, LLAMA, family_of, fitting
from parity.convert.families.base import Fields, period
from parity.convert.huggingface import write_folder
from parity.convert.names import numpy_to_torch, table
from torchlm.model import Decoder

SMALL = ModelConfig(vocab_size=11, dim=24, n_layers=3, n_heads=4)
GEMMA2: dict[str, Any] = {
    "norm": "zero_centered_rmsnorm",
    "norm_placement": "sandwich",
    "mlp": "geglu_tanh",
    "embedding_scale": 24**0.5,
    "attention_scale": 5**-0.5,
    "attention_softcap": 50.0,
    "layer_types": ["sliding", "full"],
    "sliding_window": 7,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, biases": ("llama", {"bias": "mlp", "rope_scaling": RopeScaling(type="yarn", attention_factor=1.5)}),
    "Mistral": ("mistral", {"layer_types": ["sliding"], "sliding_window": 7}),
    "Qwen2": ("qwen2", {"bias": "qkv", "layer_types": ["full", "full", "sliding"], "sliding_window": 7}),
    "Qwen3": ("qwen3", {"qk_norm": True, "bias": "attention"}),
    "SmolLM3": ("smollm3", {"layer_types": ["full", "nope"]}),
    "OLMo 2": ("olmo2", {"norm_placement": "output", "qk_norm": "all_heads"}),
    "Phi-3": ("phi3", {"rotary_dim": 4}),
    "Granite": ("granite", {"embedding_scale": 12.0, "logit_divisor": 49.0}),
    "Gemma": ("gemma", {"norm": "zero_centered_rmsnorm", "mlp": "geglu_tanh", "embedding_scale": 24**0.5}),
    "Gemma 2": ("gemma2", GEMMA2),
    "Gemma 3": ("gemma3_text", GEMMA2 | {"qk_norm": True, "sliding_rope_theta": 300.0, "attention_softcap": 0.0}),
    "GPT-2": ("gpt2", {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True}),
    "GPT-NeoX": (
        "gpt_neox",
        {"norm": "layernorm", "mlp": "gelu", "bias": True, "parallel_residual": True, "rotary_dim": 2},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_written_as_the_family_that_it_belongs_to_and_read_again(name: str):
    model_type, fields = MODELS[name]
    model = replace(SMALL, **fields)
    family = family_of(model)
    assert family.model_type == model_type
    assert family.config(family.fields(model), []) == replace(model, tie_embeddings=model.tie_embeddings)
    config = transformers.AutoConfig.for_model(**family.fields(model))
    assert config.to_dict()["vocab_size"] == 11
    assert family_of(model, "llama").model_type == model_type, "a family that cannot express it is left"


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_model_that_is_written(name: str, tmp_path: Path):
    model = replace(SMALL, max_seq_len=16, **MODELS[name][1])
    rng = np.random.default_rng(0)
    weights = {row.hf: rng.standard_normal(row.shape_in("hf")) for row in table(model)}
    write_folder(tmp_path, Config(model=model), weights, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    decoder = Decoder(model, torch.float64)
    decoder.load_state_dict({row.torch: numpy_to_torch(weights[row.hf]) for row in table(model)})
    tokens = torch.from_numpy(rng.integers(11, size=(2, 16)))
    with torch.inference_mode(), our_tables(theirs, model), without_islands(theirs):
        expected = theirs(tokens).logits
        assert (decoder(tokens) - expected).abs().max() < 1e-11 * expected.abs().max()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type: str):
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "intermediate_size": 48,
    }
    if model_type == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 8, "n_head": 32}
    default = transformers.AutoConfig.for_model(model_type, **sizes)
    family = FAMILIES[model_type]
    written = {name: value for name, value in default.to_dict().items() if value is not None}
    problems: list[str] = []
    found = family.config({"model_type": model_type, "vocab_size": default.vocab_size} | sizes, problems)
    assert found == family.config(written, problems), problems
    assert problems == []
    assert found is not None
    assert family.differences(found) == []


def test_a_family_keeps_a_model_that_others_can_express_too():
    assert [family_of(SMALL, name).model_type for name in ("mistral", "granite", "gemma", "none")] == [
        *("mistral", "granite", "llama", "llama")
    ]


def test_each_difference_is_named():
    odd = replace(SMALL, norm="layernorm", mlp="relu", ffn_dim=96)
    assert LLAMA.differences(odd) == [
        "model.norm: found 'layernorm', a Llama has only 'rmsnorm'",
        "model.mlp: found 'relu', a Llama has only 'swiglu'",
    ]
    assert fitting(odd) is None
    with pytest.raises(UserError, match=r"^model.bias: found False, a GPT-NeoX has only 'mlp'; keep it"):
        family_of(odd)
    assert LLAMA.differences(replace(SMALL, dropout=0.1, init="xavier", scan_layers=True)) == []


def test_fields_remember_what_was_read():
    fields = Fields({"a": 1, "b": None, "c": 3, "d": {}})
    assert (fields.get("a"), fields.get("b", 2), fields.raw("b", 2), fields.raw("z", 2)) == (1, 2, None, 2)
    fields.require("nowhere", "dim")
    fields.only("a", 5, 1)
    fields.check_unknown()
    assert fields.problems == [
        "nowhere is missing",
        "c: found 3, whose meaning is unknown here; delete it if it has none",
    ]


def test_layer_types_repeat_after_their_period():
    assert period(["a", "b", "a", "b", "a"]) == ["a", "b"]
    assert period(["a", "a"]) == ["a"]
    assert period(["a", "b", "b"]) == ["a", "b", "b"]
    assert period([]) == []
