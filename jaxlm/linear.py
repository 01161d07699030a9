"""Matrix products with weights, whose gradients keep the order in which XLA makes them fastest on a CPU."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

__all__ = ["LINEARS", "BiasedLinear", "Linear", "product"]


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
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _gradients(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """At x and kernel.

    jax's own rule makes the kernel's as (gradᵀ x)ᵀ, and XLA on a CPU then works out all that leads to grad in that
    transposed order: a feed-forward layer took 1.4 times as long. The barrier keeps XLA from turning it back.
    """
    x, kernel = saved
    rows, grads = (a.reshape(-1, a.shape[-1]) for a in (x, grad))
    turned = jax.lax.dot_general(rows, grads, (((0,), (0,)), ((), ())))
    return grad @ kernel.T, jax.lax.optimization_barrier(turned)


product.defvjp(_forward, _gradients)
