"""The KV cache of generation."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["Cache", "at", "write"]


class Cache(NamedTuple):
    """The KV cache: keys and values of the positions seen so far, one array per layer."""

    keys: tuple[Float[Array, "BK S H"], ...]
    values: tuple[Float[Array, "BK S H"], ...]
    pads: Int[Array, " B"]
    """Positions of left padding in each sequence."""
    lengths: Int[Array, " B"]
    """Positions filled in each sequence."""
    previous: Int[Array, "B P"]
    """Ids of the last `model.previous_tokens` tokens of each sequence."""


def at(x: Float[Array, "B T *S"], index: Int[Array, " B"]) -> Float[Array, "B 1 *S"]:
    """Return one position of each sequence."""
    return x[jnp.arange(len(x)), index][:, None]


def write(
    cached: Float[Array, "BK S H"], new: Float[Array, "B T K H"], starts: Int[Array, " B"]
) -> Float[Array, "BK S H"]:
    """Replace T positions of each sequence in one layer's keys or values, and return these.

    Args:
        cached: of the cache.
        new: keys or values of T positions.
        starts: the first of these positions in each sequence.
    """
    sequences = cached.reshape(len(starts), -1, *cached.shape[1:])
    update = jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=1))
    return update(sequences, new.swapaxes(1, 2), starts).reshape(cached.shape)
