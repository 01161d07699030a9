"""Dropout: masks from a key, which jax's counter-based generator makes the same everywhere."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Key", "dropout", "split"]

Key = jax.Array | None
"""What masks are drawn from; None where nothing is dropped."""


def split(key: Key, count: int) -> list[Key]:
    """Split a key into `count` independent keys; None stays None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Float[Array, "*S"], rate: float, key: Key) -> Float[Array, "*S"]:
    """Zero a fraction `rate` of x and scale up the rest; without a key, x itself.

    Args:
        x: activations, or attention weights.
        rate: fraction to zero; the rest is divided by 1 − rate.
        key: what the mask is drawn from; None drops nothing.
    """
    if key is None:
        return x
    kept = jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape)  # the same mask in every precision
    return jnp.where(kept, x / (1 - rate), 0)
