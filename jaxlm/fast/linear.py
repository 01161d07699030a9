"""Matmuls whose gradients and accumulation dtype are what XLA computes fastest on a CPU; `jnp.matmul` elsewhere."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lmcore.hardware import bfloat16_products

__all__ = ["linear", "matmul"]


def linear(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """Return x kernel, in their common dtype."""
    return cpu_linear(x, kernel) if on_cpu() else jnp.matmul(x, kernel)


def matmul(a: Float[Array, "*B I J"], b: Float[Array, "*#B J K"]) -> Float[Array, "*B I K"]:
    """Return a b, in their common dtype."""
    return jnp.matmul(a, b, preferred_element_type=sums_dtype(a.dtype)).astype(a.dtype)


def on_cpu() -> bool:
    """Whether programs are compiled for a CPU, as far as is known at trace time."""
    return jax.default_backend() == "cpu"


def sums_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the accumulation dtype to ask for in a matmul of `dtype`, to which its result is rounded.

    XLA on a CPU multiplies bfloat16 factors as they are only where the result is asked for in float32; for a bfloat16
    result it converts the factors to float32 first. The one is twice as fast where the processor has bfloat16
    instructions, the other where it hasn't.
    """
    native = dtype == jnp.bfloat16 and on_cpu() and bfloat16_products()
    return jnp.dtype(jnp.float32) if native else dtype


@jax.custom_vjp
def cpu_linear(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """`linear`, with gradients in the order that XLA computes fastest on a CPU."""
    return matmul(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel), (x, kernel)


def _gradients(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Return the gradients with respect to x and kernel.

    jax's own rule computes the kernel's as (gradᵀ x)ᵀ, and XLA on a CPU then computes all that leads to grad in that
    transposed order: a feed-forward layer took 1.4 times as long. The barrier keeps XLA from transposing it back. The
    sum is over all leading axes as they are: over one flattened axis, XLA would convert bfloat16 factors to float32
    whatever the accumulation dtype.
    """
    x, kernel = saved
    leading = tuple(range(x.ndim - 1))
    summed = jnp.tensordot(x, grad, (leading, leading), preferred_element_type=sums_dtype(x.dtype))
    return matmul(grad, kernel.T), jax.lax.optimization_barrier(summed.astype(x.dtype))


cpu_linear.defvjp(_forward, _gradients)
