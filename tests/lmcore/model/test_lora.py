"""Adapters are counted, named and told from the weights that they adapt."""

from dataclasses import replace

import numpy as np

from lmcore.config import Config, LoraConfig, ModelConfig
from lmcore.model.flops import flops_per_token
from lmcore.model.init import initial_weight
from lmcore.model.lora import adapter_layers, adapter_size, is_adapter, is_trained
from lmcore.model.memory import parameter_parts, state_bytes

MODEL = ModelConfig(vocab_size=11, dim=12, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=7)
ADAPTED = replace(MODEL, lora=LoraConfig(rank=2, targets=["down_proj", "k_proj"]))
A, B = "layers.0.self_attn.k_proj.lora_A.kernel", "layers.0.self_attn.k_proj.lora_B.kernel"


def test_only_adapters_are_trained_where_there_are_any():
    names = [A, B, "layers.0.self_attn.k_proj.kernel", "embed_tokens.weight"]
    assert [is_adapter(name) for name in names] == [True, True, False, False]
    assert [is_trained(ADAPTED, name) for name in names] == [True, True, False, False]
    assert all(is_trained(MODEL, name) for name in names)


def test_layers_are_named_in_the_order_of_the_model():
    layers = [f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.k_proj", "mlp.down_proj")]
    assert (adapter_layers(ADAPTED), adapter_layers(MODEL)) == (layers, [])


def test_elements_flops_and_bytes_are_those_counted_by_hand():
    size = 2 * 2 * ((12 + 6) + (7 + 12))  # layers × rank × (inputs + outputs of k and down)
    assert (adapter_size(ADAPTED), adapter_size(MODEL)) == (size, 0)
    weights = 2 * (12 * 12 + 2 * 12 * 6 + 12 * 12 + 3 * 12 * 7) + 11 * 12
    attention = flops_per_token(MODEL, 8) - 6 * weights
    assert flops_per_token(ADAPTED, 8) == 4 * weights + 6 * size + attention
    assert state_bytes(Config(model=ADAPTED)) == 3 * 4 * size  # with both moments of AdamW
    assert state_bytes(Config(model=MODEL)) == 3 * 4 * sum(parameter_parts(MODEL).values())


def test_a_is_uniform_by_its_inputs_b_is_zero_and_both_twins_draw_the_same():
    a, b = initial_weight(0, A, (400, 50), ADAPTED), initial_weight(0, B, (50, 400), ADAPTED)
    assert not b.any()
    assert 0.049 < np.abs(a).max() <= 0.05 == 1 / np.sqrt(400)
    assert abs(a.mean()) < 1e-3
    assert abs(a.std() - 0.05 / np.sqrt(3)) < 1e-3
    np.testing.assert_array_equal(a, initial_weight(0, A.replace("kernel", "weight"), (400, 50), ADAPTED))
    assert not np.array_equal(a, initial_weight(1, A, (400, 50), ADAPTED))
