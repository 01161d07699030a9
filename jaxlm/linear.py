"""Linear layers: a matmul with a weight, with or without a bias."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlm.fast.linear import linear

__all__ = ["LINEARS", "BiasedLinear", "Linear"]


class Linear(nnx.Module):
    """A matmul without bias; the kernel is stored input × output (torch stores output × input)."""

    def __init__(self, in_dim: int, out_dim: int, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((in_dim, out_dim)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return linear(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


class BiasedLinear(Linear):
    """A matmul, then a bias, added in the matmul's dtype."""

    def __init__(self, in_dim: int, out_dim: int, dtype: jnp.dtype):
        super().__init__(in_dim, out_dim, dtype)
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        y = super().__call__(x)
        return y + self.bias[(None,) * (y.ndim - 1)].astype(y.dtype)


LINEARS = {False: Linear, True: BiasedLinear}
"""Whether a linear layer of a block has a bias, as `ModelConfig.biased` says -> its class."""
