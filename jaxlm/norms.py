"""The alternatives to RMSNorm among which `model.norm` chooses."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

__all__ = ["LayerNorm", "NoNorm", "unnormed"]


class LayerNorm(nnx.Module):
    """LayerNorm: (x − mean(x)) / √(var(x) + eps), times weight, plus bias (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, dim: int, eps: float):
        self.weight = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        full = x.astype(self.weight.dtype)
        centred = full - jnp.mean(full, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
        return (normed * self.weight[None, None] + self.bias[None, None]).astype(x.dtype)


class NoNorm(nnx.Module):
    """Identity, for a model without norms."""

    def __init__(self, dim: int, eps: float):
        pass

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return x


def unnormed(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Return x unchanged: stands where `norm_placement` has no norm, without being a module."""
    return x
