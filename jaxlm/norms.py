"""The alternatives to RMSNorm among which `model.norm` chooses."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

__all__ = ["LayerNorm", "NoNorm", "ZeroCenteredRMSNorm"]


class ZeroCenteredRMSNorm(nnx.Module):
    """RMSNorm whose weight is stored less one: x / √(mean(x²) + eps), times 1 + weight, as in Gemma."""

    def __init__(self, dim: int, eps: float):
        self.weight = nnx.Param(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        full = x.astype(self.weight.dtype)
        normed = full * jax.lax.rsqrt(jnp.mean(full * full, axis=-1, keepdims=True) + self.eps)
        return (normed * (1 + self.weight[(None,) * (x.ndim - 1)])).astype(x.dtype)


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
