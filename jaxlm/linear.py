"""Matrix products with weights, with and without bias."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

__all__ = ["LINEARS", "BiasedLinear", "Linear"]


class Linear(nnx.Module):
    """Matrix product without bias; the kernel is stored input × output (torch stores output × input)."""

    def __init__(self, in_dim: int, out_dim: int, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((in_dim, out_dim)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)


class BiasedLinear(Linear):
    """Matrix product, then a bias, added in the product's type."""

    def __init__(self, in_dim: int, out_dim: int, dtype: jnp.dtype):
        super().__init__(in_dim, out_dim, dtype)
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        y = super().__call__(x)
        return y + self.bias[(None,) * (y.ndim - 1)].astype(y.dtype)


LINEARS = {False: Linear, True: BiasedLinear}
"""`model.bias` -> the kind of linear layer in a block."""
