"""The alternatives to RMSNorm against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.norms import LayerNorm, NoNorm, ZeroCenteredRMSNorm


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def layer_norm(weight: np.ndarray, bias: np.ndarray, eps: float, dtype: type) -> LayerNorm:
    norm = LayerNorm(len(weight), eps)
    norm.weight, norm.bias = nnx.Param(jnp.asarray(weight, dtype)), nnx.Param(jnp.asarray(bias, dtype))
    return norm


def test_layernorm_is_its_formula_with_eps_inside_the_root() -> None:
    x, weight, bias = draws(2, 3, 20) * 0.1 + 1, draws(20, seed=1), draws(20, seed=2)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    with jax.enable_x64(True):
        found = np.asarray(layer_norm(weight, bias, 1e-2, jnp.float64)(jnp.asarray(x)))
    np.testing.assert_allclose(found, centred / np.sqrt(variance + 1e-2) * weight + bias, rtol=0, atol=1e-12)
    assert np.abs(found - (centred / (np.sqrt(variance) + 1e-2) * weight + bias)).max() > 1e-2


def test_layernorm_computes_in_float32_and_rounds_to_the_dtype_of_x() -> None:
    weight, bias = draws(20, seed=1), draws(20, seed=2)
    x = jnp.asarray(draws(2, 3, 20) + 30, jnp.bfloat16)
    norm = layer_norm(weight, bias, 1e-5, jnp.float32)
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(norm(x), norm(x.astype(jnp.float32)).astype(jnp.bfloat16))
    rounded = layer_norm(weight, bias, 1e-5, jnp.bfloat16)(x)
    assert not np.array_equal(norm(x), rounded), "sums in bfloat16 are others"


def test_without_a_norm_x_is_passed_on_and_nothing_is_trained() -> None:
    x, none = jnp.asarray(draws(2, 3)), NoNorm(3, 1e-5)
    assert none(x) is x
    assert jax.tree.leaves(nnx.state(none)) == []


def test_a_zero_centered_norm_multiplies_by_one_more_than_its_weight() -> None:
    x, weight = draws(2, 3, 20), draws(20, seed=1)
    norm = ZeroCenteredRMSNorm(20, 1e-2)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-2)
    with jax.enable_x64(True):
        norm.weight = nnx.Param(jnp.zeros(20))
        np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=0, atol=1e-12)
        norm.weight = nnx.Param(jnp.asarray(weight))
        np.testing.assert_allclose(norm(jnp.asarray(x)), expected * (1 + weight), rtol=0, atol=1e-12)
