"""Feed-forward layers and their activations against plain formulas, at odd sizes."""

import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.linear import Linear
from jaxlm.mlps import ACTIVATIONS, MLP, GatedMLP, make_mlp
from lmcore.config import ModelConfig

SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=11)
ERF = np.vectorize(math.erf)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def drawn(config: ModelConfig) -> GatedMLP | MLP:
    """A layer whose weights, and biases where it has some, are drawn."""
    layer = make_mlp(config, jnp.dtype("float64"))
    for seed, name in enumerate(("gate_proj", "up_proj", "down_proj"), 1):
        linear: Linear | None = getattr(layer, name, None)
        for part in ("kernel", "bias"):
            if linear is not None and hasattr(linear, part):
                shape = getattr(linear, part).shape
                setattr(linear, part, nnx.Param(jnp.asarray(draws(*shape, seed=seed) * 0.2)))
    return layer


def close(found: jax.Array, expected: np.ndarray, tolerance: float = 1e-12) -> bool:
    return bool(np.abs(np.asarray(found) - expected).max() <= tolerance * np.abs(expected).max())


def test_swiglu_gates_by_silu_of_the_gate() -> None:
    layer, x = drawn(SHAPE), draws(2, 3, 20)
    gate, up = (x @ np.asarray(w.kernel[...]) for w in (layer.gate_proj, layer.up_proj))
    down = np.asarray(layer.down_proj.kernel[...])
    assert close(layer(jnp.asarray(x)), (gate / (1 + np.exp(-gate)) * up) @ down)
    assert not close(layer(jnp.asarray(x)), (up / (1 + np.exp(-up)) * gate) @ down, 1e-3)


def test_geglu_and_relu_are_their_formulas() -> None:
    x = draws(2, 3, 20)
    gelu = lambda y: y * (1 + ERF(y / math.sqrt(2))) / 2  # noqa: E731
    for mlp, kind, act in (("geglu", GatedMLP, gelu), ("relu", MLP, lambda y: np.maximum(y, 0))):
        layer = drawn(replace(SHAPE, mlp=mlp, bias=True))
        assert type(layer) is kind

        def projected(name: str, layer: GatedMLP | MLP = layer) -> np.ndarray:
            linear = getattr(layer, name)
            return x @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])

        inner = act(projected("gate_proj")) * projected("up_proj") if kind is GatedMLP else act(projected("up_proj"))
        kernel, bias = (np.asarray(part[...]) for part in (layer.down_proj.kernel, layer.down_proj.bias))
        assert close(layer(jnp.asarray(x)), inner @ kernel + bias)
        assert not close(layer(jnp.asarray(x)), inner @ kernel, 1e-3)


@pytest.mark.parametrize(
    ("mlp", "at_one", "at_minus_two"),
    [
        ("swiglu", 0.7310585786300049, -0.2384058440442351),
        ("geglu", 0.8413447460685429, -0.0455002638963584),  # by the tanh formula 0.84119 and -0.04540
        ("gelu", 0.8413447460685429, -0.0455002638963584),
        ("relu", 1.0, 0.0),
    ],
)
def test_activations_have_their_known_values(mlp: str, at_one: float, at_minus_two: float) -> None:
    found = ACTIVATIONS[mlp](jnp.asarray([1.0, 0.0, -2.0]))
    np.testing.assert_allclose(found, [at_one, 0, at_minus_two], rtol=1e-14)
