"""Initial weights are a pure function of seed and name, with the spread that the contract gives them."""

import hashlib
import math

import numpy as np
import pytest

from lmcore.config import ModelConfig
from lmcore.model.init import initial_weight

GOLDEN = [0.01112485, -0.00591751, 0.0032387, 0.00979241, 0.04887727, -0.01139871]
"""Seed 0, `layers.0.self_attn.q_proj`, 2 × 3, as NumPy 2.4 gave it."""


def matrix(
    seed: int = 0, name: str = "layers.0.self_attn.q_proj", n_layers: int = 4, init: str = "normal"
) -> np.ndarray:
    return initial_weight(seed, f"{name}.kernel", (200, 300), ModelConfig(n_layers=n_layers, init=init))


def test_the_draw_is_the_same_in_every_version():
    found = initial_weight(0, "layers.0.self_attn.q_proj.kernel", (2, 3), ModelConfig())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), GOLDEN, rtol=0, atol=5e-9)
    key = int.from_bytes(hashlib.sha256(b"0:layers.0.self_attn.q_proj").digest()[:16], "little")
    draws = np.random.Generator(np.random.Philox(key=key)).standard_normal(6, np.float32)
    assert np.array_equal(found.ravel(), draws * np.float32(0.02))


def test_order_and_other_parameters_do_not_matter():
    names = ["embed_tokens", "layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "lm_head"]
    forwards = {name: matrix(name=name) for name in names}
    np.random.seed(5)  # noqa: NPY002 - the global generator must not matter either
    backwards = {name: matrix(name=name) for name in reversed(names)}
    assert all(np.array_equal(forwards[name], backwards[name]) for name in names)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"name": "layers.1.self_attn.q_proj"}, {"name": "layers.0.mlp.up_proj"}]
)
def test_seeds_and_names_give_unrelated_draws(other: dict):
    one, two = matrix().ravel(), matrix(**other).ravel()
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(one.size)


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "layers.3.self_attn.k_proj", "layers.0.mlp.gate_proj"])
def test_weights_are_normal_with_std_0_02(name: str):
    draws = matrix(name=name).ravel().astype(np.float64)
    error = 0.02 / math.sqrt(draws.size)
    assert abs(draws.mean()) < 5 * error
    assert abs(draws.std() - 0.02) < 5 * error / math.sqrt(2)
    inside = (np.abs(draws) < 0.02).mean()
    assert abs(inside - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / draws.size)


@pytest.mark.parametrize("n_layers", [1, 2, 6, 32])
@pytest.mark.parametrize("name", ["layers.0.self_attn.o_proj", "layers.1.mlp.down_proj"])
def test_outputs_onto_the_residual_stream_are_scaled_by_one_over_root_two_layers(name: str, n_layers: int):
    key = int.from_bytes(hashlib.sha256(f"0:{name}".encode()).digest()[:16], "little")
    draws = np.random.Generator(np.random.Philox(key=key)).standard_normal((200, 300), np.float32)
    std = 0.02 / math.sqrt(2 * n_layers)
    assert np.array_equal(matrix(name=name, n_layers=n_layers), draws * np.float32(std))
    assert abs(matrix(name=name, n_layers=n_layers).std() / std - 1) < 5 / math.sqrt(2 * 60_000)


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "layers.0.self_attn.v_proj", "layers.0.mlp.up_proj"])
def test_other_weights_know_nothing_of_the_depth(name: str):
    assert np.array_equal(matrix(name=name, n_layers=1), matrix(name=name, n_layers=32))


def test_norm_weights_are_ones_and_biases_zeros():
    for name, value in (("input_layernorm.weight", 1), ("input_layernorm.bias", 0), ("mlp.up_proj.bias", 0)):
        found = initial_weight(0, f"layers.0.{name}", (7,), ModelConfig())
        assert found.dtype == np.float32
        assert np.array_equal(found, np.full(7, value))


def test_xavier_is_uniform_within_its_bound():
    draws, bound = matrix(init="xavier"), math.sqrt(6 / 500)
    assert draws.dtype == np.float32
    assert bound * 0.999 < np.abs(draws).max() <= np.float32(bound)
    assert abs(draws.mean()) < 5 * bound / math.sqrt(3 * draws.size)
    quarters, _ = np.histogram(draws, bins=4, range=(-bound, bound))
    assert np.abs(quarters / draws.size - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / draws.size)


def test_kaiming_is_normal_by_the_number_of_inputs():
    draws, std = matrix(init="kaiming"), math.sqrt(2 / 200)
    np.testing.assert_allclose(draws, matrix() * (std / 0.02), rtol=1e-6)
    assert abs(draws.std() / std - 1) < 5 / math.sqrt(2 * draws.size)


@pytest.mark.parametrize("init", ["xavier", "kaiming"])
def test_embeddings_and_the_depth_know_nothing_of_xavier_and_kaiming(init: str):
    for name in ("embed_tokens", "embed_positions"):
        assert np.array_equal(matrix(name=name, init=init), matrix(name=name))
    outputs = {"name": "layers.0.mlp.down_proj", "init": init}
    assert np.array_equal(matrix(**outputs, n_layers=1), matrix(**outputs, n_layers=9))
    assert not np.array_equal(matrix(init=init), matrix())
