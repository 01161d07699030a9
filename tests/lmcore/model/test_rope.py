"""The rotary tables against complex multiplication and against Hugging Face's own Llama."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lmcore.config import ModelConfig, RopeScaling
from lmcore.model.rope import frequencies, rope_tables, sinusoidal_table

MODEL = ModelConfig(dim=30, n_heads=5, max_seq_len=37, rope_theta=500.0)  # head width 6
SCALED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 64}


def half_split(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn feature i with feature i + H/2: what both twins do."""
    return x * cos + np.roll(x, x.shape[-1] // 2, axis=-1) * sin


def interleaved(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """The other layout: turn feature 2i with feature 2i + 1."""
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = (table[:, x.shape[-1] // 2 :] for table in (cos, sin))
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


def by_complex_numbers(x: np.ndarray, theta: float) -> np.ndarray:
    """x_i + i·x_(i + H/2), times e^(i · position · theta^(-2i/H))."""
    positions, width = np.arange(len(x))[:, None], x.shape[-1]
    pairs = x[:, : width // 2] + 1j * x[:, width // 2 :]
    turned = pairs * np.exp(1j * positions * theta ** (-2.0 * np.arange(width // 2) / width))
    return np.concatenate([turned.real, turned.imag], axis=-1)


def distance(turn: Callable = half_split, theta: float = 500.0, shift: int = 0) -> float:
    """Largest difference to complex multiplication, when the tables are used by `turn`, for `theta`, or `shift`ed."""
    x = np.random.default_rng(0).standard_normal((37, 6))
    cos, sin = rope_tables(ModelConfig(dim=30, n_heads=5, max_seq_len=37 + shift, rope_theta=theta))
    return float(np.abs(turn(x, cos[shift:], sin[shift:]) - by_complex_numbers(x, 500.0)).max())


def test_turning_is_multiplication_by_complex_numbers():
    assert distance() < 1e-12


@pytest.mark.parametrize("fault", [{"turn": interleaved}, {"theta": 501.0}, {"shift": 1}])
def test_another_layout_theta_or_position_is_seen(fault: dict):
    assert distance(**fault) > 1e-3


def test_tables_are_float64_with_a_row_for_each_position_and_a_column_for_each_feature():
    for table in rope_tables(MODEL):
        assert (table.shape, table.dtype) == ((37, 6), np.float64)


def hugging_face(model: ModelConfig, parameters: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies, cosines and sines of transformers' Llama, all computed there in float32."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=model.dim,
        num_attention_heads=model.n_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_seq_len,
        rope_parameters={"rope_theta": model.rope_theta, **parameters},
    )
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1, dtype=torch.float32), torch.arange(model.max_seq_len)[None])
    return rotary.inv_freq.numpy(), cos[0].numpy(), sin[0].numpy()


def ours(model: ModelConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same three from lmcore: in Hugging Face's table of sines no half is negative."""
    cos, sin = rope_tables(model)
    first, second = np.split(sin, 2, axis=-1)
    return (
        frequencies(model.head_dim, model.rope_theta, model.rope_scaling),
        cos,
        np.concatenate([-first, second], axis=-1),
    )


@pytest.mark.parametrize("scaling", [None, RopeScaling(**SCALED)], ids=["plain", "llama3"])
def test_frequencies_and_tables_are_hugging_faces(scaling: RopeScaling | None):
    names = {"original_max_seq_len": "original_max_position_embeddings"}
    parameters = {names.get(name, name): value for name, value in SCALED.items()} if scaling else {}
    shape = ModelConfig(dim=64, n_heads=1, max_seq_len=9)  # few positions: float32 angles lose a digit at each tenfold
    model = replace(shape, rope_scaling=scaling)
    theirs = hugging_face(model, {"rope_type": "llama3" if scaling else "default", **parameters})
    for our, their in zip(ours(model), theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours(model)[0], theirs[0], rtol=1e-6, atol=0)
    for other in (replace(model, rope_theta=10100.0), replace(model, rope_scaling=None if scaling else RopeScaling())):
        assert any(np.abs(our - their).max() > 1e-3 for our, their in zip(ours(other), theirs))


def test_scaling_stretches_long_waves_in_full_leaves_short_ones_alone_and_blends_between():
    plain = frequencies(64, 10000.0)
    scaled = frequencies(64, 10000.0, RopeScaling(**SCALED))
    turns = 64 * plain / (2 * np.pi)  # over the original context
    assert np.array_equal(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-15)
    between = (turns > 1) & (turns < 4)
    assert between.sum() >= 3
    assert np.all((plain / 8 < scaled)[between] & (scaled < plain)[between])
    assert (turns > 4).any()
    assert (turns < 1).any()


@pytest.mark.parametrize("dim", [6, 7])
def test_sinusoids_are_those_of_the_original_transformer(dim: int):
    table = sinusoidal_table(ModelConfig(dim=dim, n_heads=1, position="sinusoidal", max_seq_len=11))
    assert table.shape == (11, dim)
    for position in range(11):
        for feature in range(dim):
            angle = position / 10000 ** ((feature - feature % 2) / dim)
            expected = math.cos(angle) if feature % 2 else math.sin(angle)
            assert table[position, feature] == pytest.approx(expected, rel=1e-14, abs=1e-15)
    assert table[3, 1] != pytest.approx(math.sin(3), abs=1e-3)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_is_hugging_faces(truncate: bool):
    scaling = RopeScaling(type="yarn", factor=4.0, original_max_seq_len=64, beta_fast=4.0, truncate=truncate)
    model = ModelConfig(dim=64, n_heads=1, max_seq_len=9, rope_scaling=scaling)
    settings = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 4.0}
    theirs = hugging_face(model, settings | {"truncate": truncate})
    for our, their in zip(ours(model), theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-6, atol=1e-6)
    other = ours(replace(model, rope_scaling=replace(scaling, truncate=not truncate)))
    assert np.abs(other[0] - theirs[0]).max() > 1e-5
    louder = rope_tables(replace(model, rope_scaling=replace(scaling, attention_factor=2.0)))[0]
    np.testing.assert_allclose(louder[0], 2.0)


def test_linear_scaling_divides_and_dynamic_scaling_waits():
    plain = frequencies(8, 100.0)
    np.testing.assert_allclose(frequencies(8, 100.0, RopeScaling(type="linear", factor=4.0)), plain / 4)
    np.testing.assert_array_equal(frequencies(8, 100.0, RopeScaling(type="dynamic", factor=4.0)), plain)


def test_features_and_layers_without_rotation_keep_their_values():
    model = ModelConfig(dim=16, n_heads=2, rotary_dim=4, layer_types=["sliding", "nope"], sliding_window=3)
    cos, sin = rope_tables(model)
    whole = rope_tables(ModelConfig(dim=8, n_heads=2))[0]
    np.testing.assert_array_equal(cos[:, [0, 1, 4, 5]], whole)
    np.testing.assert_array_equal(cos[:, [2, 3, 6, 7]], 1)
    np.testing.assert_array_equal(sin[:, [2, 3, 6, 7]], 0)
    cos, sin = rope_tables(model, "nope")
    assert (cos == 1).all()
    assert (sin == 0).all()


def test_sliding_layers_may_have_a_base_of_their_own():
    model = ModelConfig(layer_types=["sliding"], sliding_window=3, rope_scaling=RopeScaling(type="linear"))
    np.testing.assert_array_equal(rope_tables(model, "sliding")[0], rope_tables(model)[0])
    own = rope_tables(replace(model, sliding_rope_theta=500.0), "sliding")[0]
    np.testing.assert_array_equal(own, rope_tables(ModelConfig(rope_theta=500.0))[0])
