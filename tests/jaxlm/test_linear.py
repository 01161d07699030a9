"""Linear layers are in their own dtype, forward and backward."""

import jax
import jax.numpy as jnp

from jaxlm.linear import Linear


def test_matmuls_and_their_gradients_are_in_the_layers_dtype() -> None:
    layer = Linear(4, 6, jnp.dtype("bfloat16"))
    x = jnp.ones((2, 4))
    y, transpose = jax.vjp(layer, x)
    assert y.dtype == jnp.bfloat16
    (grad,) = transpose(y)
    assert grad.dtype == x.dtype
