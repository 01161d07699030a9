"""The model's group derives the sizes that are not given, and refuses what cannot be built."""

from typing import Any

import pytest

from lmcore.config import ModelConfig, RopeScaling
from lmcore.errors import UserError


@pytest.mark.parametrize(
    ("given", "derived"),
    [
        ({"dim": 30, "n_heads": 5}, {"head_dim": 6, "n_kv_heads": 5, "ffn_dim": 96}),
        ({"dim": 30, "n_heads": 5, "n_kv_heads": 1}, {"head_dim": 6, "n_kv_heads": 1}),
        ({"dim": 31, "n_heads": 5, "head_dim": 8}, {"head_dim": 8, "n_kv_heads": 5}),
        ({"dim": 12, "n_heads": 3, "ffn_dim": 7}, {"ffn_dim": 7}),
        ({"dim": 24, "n_heads": 3}, {"ffn_dim": 64}),  # 8/3 of 24 is a multiple of 32 already
        ({"dim": 26, "n_heads": 1}, {"ffn_dim": 96}),
        ({"dim": 26, "n_heads": 1, "mlp": "geglu"}, {"ffn_dim": 96}),
        ({"dim": 26, "n_heads": 1, "mlp": "relu"}, {"ffn_dim": 104}),
        ({"dim": 21, "n_heads": 3, "position": "learned"}, {"head_dim": 7}),
    ],
)
def test_the_model_fills_what_is_not_given_and_keeps_what_is(given: dict[str, int], derived: dict[str, int]):
    model = ModelConfig(**given)
    assert {name: getattr(model, name) for name in given | derived} == given | derived


MODEL = {"dim": 24, "n_heads": 4}
IMPOSSIBLE = [
    (ModelConfig, {"dim": 30, "n_heads": 4}, "model.dim: found 30, expected a multiple of n_heads = 4"),
    (ModelConfig, {"dim": 20, "n_heads": 4}, "model.head_dim: found 5, expected an even number"),
    (ModelConfig, {**MODEL, "head_dim": 7}, "model.head_dim: found 7, expected an even number"),
    (
        ModelConfig,
        {"position": "learned", "rope_scaling": RopeScaling()},
        "model.rope_scaling: found RopeScaling(type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, "
        "original_max_seq_len=8192, beta_fast=32.0, beta_slow=1.0, attention_factor=0.0, truncate=True), expected null",
    ),
    (ModelConfig, {**MODEL, "head_dim": -2}, "model.head_dim: found -2, expected at least 0"),
    (ModelConfig, {**MODEL, "n_kv_heads": 3}, "model.n_kv_heads: found 3, expected a divisor of n_heads = 4"),
    (ModelConfig, {**MODEL, "n_kv_heads": 8}, "model.n_kv_heads: found 8, expected a divisor of n_heads = 4"),
    (ModelConfig, {"n_heads": 0}, "model.n_heads: found 0, expected at least 1"),
    (ModelConfig, {"n_layers": 0}, "model.n_layers: found 0, expected at least 1"),
    (ModelConfig, {"dim": 0}, "model.dim: found 0, expected at least 1"),
    (ModelConfig, {"vocab_size": -1}, "model.vocab_size: found -1, expected at least 0"),
    (ModelConfig, {"ffn_dim": -1}, "model.ffn_dim: found -1, expected at least 0"),
    (ModelConfig, {"max_seq_len": 1}, "model.max_seq_len: found 1, expected at least 2"),
    (ModelConfig, {"rope_theta": 0.0}, "model.rope_theta: found 0.0, expected more than 0"),
    (ModelConfig, {"norm_eps": 0.0}, "model.norm_eps: found 0.0, expected more than 0"),
    (ModelConfig, {"dropout": 1.0}, "model.dropout: found 1.0, expected at least 0 and less than 1"),
    (ModelConfig, {"dropout": -0.1}, "model.dropout: found -0.1, expected at least 0 and less than 1"),
    (ModelConfig, {**MODEL, "rotary_dim": 3}, "model.rotary_dim: found 3, expected an even number up to head_dim = 6"),
    (ModelConfig, {**MODEL, "rotary_dim": 8}, "model.rotary_dim: found 8, expected an even number up to head_dim = 6"),
    (ModelConfig, {"layer_types": []}, "model.layer_types: found [], expected at least one layer type"),
    (ModelConfig, {"layer_types": ["local"]}, "model.layer_types: found 'local', expected one of full, sliding, nope"),
    (ModelConfig, {"n_layers": 1, "layer_types": ["full"] * 2}, "model.layer_types: found ['full', 'full'], expected"),
    (ModelConfig, {"layer_types": ["sliding"]}, "model.sliding_window: found 0, expected the number of tokens"),
    (ModelConfig, {"sliding_window": 3}, "model.sliding_window: found 3, expected 0 without a sliding layer"),
    (ModelConfig, {"sliding_rope_theta": 3.0}, "model.sliding_rope_theta: found 3.0, expected 0 without a sliding"),
    (ModelConfig, {"position": "none", "layer_types": ["nope"]}, "model.layer_types: found 'nope', expected other"),
    (
        ModelConfig,
        {"layer_types": ["full", "nope"], "scan_layers": True},
        "model.scan_layers: found True, expected false with several layer types: full, nope",
    ),
    (
        ModelConfig,
        {"norm": "zero_centered_rmsnorm", "qk_norm": "all_heads"},
        "model.qk_norm: found 'all_heads', expected true or false",
    ),
    (
        ModelConfig,
        {"norm_placement": "post", "parallel_residual": True},
        "model.parallel_residual: found True, expected false with norm_placement: post",
    ),
    (ModelConfig, {"logit_divisor": 0.0}, "model.logit_divisor: found 0.0, expected more than 0"),
    (ModelConfig, {"attention_softcap": -1.0}, "model.attention_softcap: found -1.0, expected at least 0"),
    (
        ModelConfig,
        {"rope_theta": 1.0, "rope_scaling": RopeScaling(type="yarn")},
        "model.rope_theta: found 1.0, expected more than 1",
    ),
    (RopeScaling, {"beta_slow": 64.0}, "model.rope_scaling.beta_fast: found 32.0, expected at least beta_slow"),
    (RopeScaling, {"factor": 0.5}, "model.rope_scaling.factor: found 0.5, expected at least 1"),
    (RopeScaling, {"low_freq_factor": 0.0}, "model.rope_scaling.low_freq_factor: found 0.0, expected more than 0"),
    (
        RopeScaling,
        {"low_freq_factor": 4.0},
        "model.rope_scaling.high_freq_factor: found 4.0, expected more than low_freq_factor",
    ),
]


@pytest.mark.parametrize(("kind", "values", "message"), IMPOSSIBLE, ids=[message for _, _, message in IMPOSSIBLE])
def test_what_cannot_be_names_the_field_the_value_and_what_would_do(kind: type, values: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        kind(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ModelConfig, {"dim": 30, "n_heads": 4, "head_dim": 6}),
        (ModelConfig, {**MODEL, "n_kv_heads": 2}),
        (ModelConfig, {"dropout": 0.0}),
        (RopeScaling, {"factor": 1.0}),
    ],
)
def test_values_at_the_border_are_possible(kind: type, values: dict[str, Any]):
    kind(**values)
