"""Matrix products with weights, whose gradients keep the order in which XLA makes them fastest on a CPU."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lmcore.hardware import bfloat16_products

__all__ = ["LINEARS", "BiasedLinear", "Linear", "matmul", "product"]


class Linear(nnx.Module):
    """Matrix product without bias; the kernel is stored input × output (torch stores output × input)."""

    def __init__(self, in_dim: int, out_dim: int, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((in_dim, out_dim)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return product(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


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


@jax.custom_vjp
def product(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """x kernel."""
    return matmul(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel), (x, kernel)


def _gradients(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """At x and kernel.

    jax's own rule makes the kernel's as (gradᵀ x)ᵀ, and XLA on a CPU then works out all that leads to grad in that
    transposed order: a feed-forward layer took 1.4 times as long. The barrier keeps XLA from turning it back. The sum
    is over all leading axes as they are: over rows in one axis, XLA would widen bfloat16 factors whatever the sums.
    """
    x, kernel = saved
    leading = tuple(range(x.ndim - 1))
    summed = jnp.tensordot(x, grad, (leading, leading), preferred_element_type=sums_dtype(x.dtype))
    return matmul(grad, kernel.T), jax.lax.optimization_barrier(summed.astype(x.dtype))


product.defvjp(_forward, _gradients)


def matmul(a: Float[Array, "*B I J"], b: Float[Array, "*#B J K"]) -> Float[Array, "*B I K"]:
    """a b, of the factors' type."""
    return jnp.matmul(a, b, preferred_element_type=sums_dtype(a.dtype)).astype(a.dtype)


def sums_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type to ask for the sums of a product in, before they are rounded to the factors' `dtype`.

    XLA on a CPU multiplies bfloat16 factors as they are only for sums in float32; for bfloat16 sums it widens the
    factors first. The one is twice as fast where the processor has such products, the other where it hasn't.
    """
    as_they_are = dtype == jnp.bfloat16 and jax.default_backend() == "cpu" and bfloat16_products()
    return jnp.dtype(jnp.float32) if as_they_are else dtype
