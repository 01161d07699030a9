"""Matmuls whose gradients have factors in the matmuls' own dtype, and which a CPU's XLA computes fast.

What is for a CPU alone is chosen by `jax.lax.platform_dependent` where the program is lowered, so that the same trace
serves every platform; on others it is `jnp.matmul` and jax's own rules.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lmcore.hardware import bfloat16_products

__all__ = ["accumulated", "linear", "matmul"]


@jax.custom_vjp
def linear(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """Return x kernel, in their common dtype."""
    return product(x, kernel)


@jax.custom_vjp
def matmul(a: Float[Array, "*B I J"], b: Float[Array, "*B J K"]) -> Float[Array, "*B I K"]:
    """Return a b, in their common dtype."""
    return product(a, b)


@jax.custom_vjp
def accumulated(a: Float[Array, "*B I J"], b: Float[Array, "*B J K"]) -> Float[Array, "*B I K"]:
    """Return a b in its accumulation dtype: float32 for 16-bit factors.

    jax's own rule would multiply its float32 gradient with 16-bit factors, several times slower than two of 16 bits on
    an accelerator. Here the gradient is rounded first, as that of every other matmul is.
    """
    return jnp.matmul(a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def product(a: Float[Array, "*B I J"], b: Float[Array, "*#B J K"]) -> Float[Array, "*B I K"]:
    """Return a b, in their common dtype, without gradients of its own.

    XLA on a CPU multiplies bfloat16 factors as they are only where the result is asked for in float32; for a bfloat16
    result it converts the factors to float32 first. The one is twice as fast where the processor has bfloat16
    instructions, the other where it hasn't.
    """
    if a.dtype != jnp.bfloat16 or not bfloat16_products():
        return jnp.matmul(a, b)
    return jax.lax.platform_dependent(a, b, cpu=_rounded_once, default=jnp.matmul)


def _rounded_once(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)


def _gradients(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Return the gradients with respect to both factors of a matmul, each with factors in their dtype."""
    a, b = saved
    grad = grad.astype(a.dtype)
    return product(grad, b.mT), product(grad.mT, a).mT


def _linear_gradients(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    of_kernel = jax.lax.platform_dependent(x, grad, cpu=_kernel_gradient_on_cpu, default=_kernel_gradient)
    return product(grad, kernel.T), of_kernel


def _kernel_gradient(x: Array, grad: Array) -> Array:
    """Return (gradᵀ x)ᵀ, as jax's own rule does."""
    leading = tuple(range(x.ndim - 1))
    return jnp.tensordot(grad, x, (leading, leading)).T


def _kernel_gradient_on_cpu(x: Array, grad: Array) -> Array:
    """Return xᵀ grad, in the order that XLA computes fastest on a CPU.

    For jax's own rule, (gradᵀ x)ᵀ, XLA on a CPU computes all that leads to grad in that transposed order: a
    feed-forward layer took 1.4 times as long. The barrier keeps XLA from transposing it back. A sum over one flattened
    axis reads x as it lies, where one over several copies xᵀ first; but of bfloat16 factors XLA multiplies only those
    of a sum over several axes as they are.
    """
    if x.dtype == jnp.bfloat16 and bfloat16_products():
        leading = tuple(range(x.ndim - 1))
        summed = jnp.tensordot(x, grad, (leading, leading), preferred_element_type=jnp.float32)  # see `product`
    else:
        summed = jnp.tensordot(x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1]), (0, 0))
    return jax.lax.optimization_barrier(summed.astype(x.dtype))


linear.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _linear_gradients)
matmul.defvjp(lambda a, b: (matmul(a, b), (a, b)), _gradients)
accumulated.defvjp(lambda a, b: (accumulated(a, b), (a, b)), _gradients)
