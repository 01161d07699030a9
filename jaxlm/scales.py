"""Factors and soft caps of some model families; where a config has none, a function that returns its input."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["softcapped", "times", "unchanged"]

Change = Callable[[Array], Array]


def unchanged(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Return x."""
    return x


def times(factor: float) -> Change:
    """Return a function that multiplies by a factor, in the dtype of its input."""
    return unchanged if factor == 1 else lambda x: x * factor


def softcapped(limit: float) -> Change:
    """Return a function that maps x to limit · tanh(x / limit) (Bello et al. 2016, arXiv:1611.09940); 0 is no limit."""
    return unchanged if limit == 0 else lambda x: limit * jnp.tanh(x / limit)
