"""Linear layers are their formula, in their own dtype, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.linear import LINEARS, BiasedLinear, Linear


def test_matmuls_and_their_gradients_are_in_the_layers_dtype() -> None:
    layer = Linear(4, 6, jnp.dtype("bfloat16"))
    x = jnp.ones((2, 4))
    y, transpose = jax.vjp(layer, x)
    assert y.dtype == jnp.bfloat16
    (grad,) = transpose(y)
    assert grad.dtype == x.dtype


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_its_formula_with_and_without_a_bias(bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, weight, offset = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    with jax.enable_x64(True):
        layer = LINEARS[bias](4, 5, jnp.dtype("float64"))
        assert type(layer) is (BiasedLinear if bias else Linear)
        layer.kernel = nnx.Param(jnp.asarray(weight))
        if bias:
            layer.bias = nnx.Param(jnp.asarray(offset))
        found = np.asarray(layer(jnp.asarray(x)))
    np.testing.assert_allclose(found, x @ weight + (offset if bias else 0), rtol=0, atol=1e-13)
    assert np.abs(found - x @ weight).max() > 1e-2 or not bias


def test_a_bias_is_added_in_the_matmuls_dtype() -> None:
    layer = BiasedLinear(1, 2, jnp.dtype("bfloat16"))
    layer.kernel, layer.bias = nnx.Param(jnp.ones((1, 2))), nnx.Param(jnp.asarray([0.0, 1 / 3]))
    y = layer(jnp.full((2, 1), 256.0))
    assert y.dtype == jnp.bfloat16
    assert y.tolist() == [[256.0, 256.0]] * 2, "bfloat16 has no number between 256 and 258"
