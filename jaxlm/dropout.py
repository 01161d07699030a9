"""Dropout with masks from a random key: jax's counter-based generator gives the same mask on every device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Key", "dropout", "split"]

Key = jax.Array | None
"""Random key of the masks; None switches dropout off."""


def split(key: Key, count: int) -> list[Key]:
    """Split a key into `count` independent keys; None stays None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Float[Array, "*S"], rate: float, key: Key) -> Float[Array, "*S"]:
    """Zero a fraction `rate` of x and scale up the rest; without a key, return x unchanged.

    Args:
        x: activations, or attention weights.
        rate: fraction to zero; the rest is divided by 1 − rate.
        key: random key of the mask; None switches dropout off.
    """
    if key is None or rate == 0:
        return x
    mask = jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape)  # the same mask in every precision
    return jnp.where(mask, x / (1 - rate), 0)
