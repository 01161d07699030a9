"""How activations pass through the blocks: one after another in the program, or one block in a loop over the layers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlm.dropout import Key

__all__ = ["LAYERS", "Step", "scanned", "unrolled"]

Step = Callable[[nnx.Module, Array, Key, Key], Array]
"""Applies a block to activations, with a key for its attention weights and one for its branches."""


def unrolled(
    step: Step, blocks: Sequence[nnx.Module], x: Float[Array, "B T D"], keys: Sequence[tuple[Key, Key]]
) -> Float[Array, "B T D"]:
    """Every block by itself, so that XLA sees them all: the time to compile grows with their number."""
    for block, pair in zip(blocks, keys, strict=True):
        x = step(block, x, *pair)
    return x


def scanned(
    step: Step, blocks: Sequence[nnx.Module], x: Float[Array, "B T D"], keys: Sequence[tuple[Key, Key]]
) -> Float[Array, "B T D"]:
    """One block, compiled once, in a loop over the layers' weights, which are stacked for it at every step."""
    graph, _ = nnx.split(blocks[0])
    weights = jax.tree.map(lambda *layers: jnp.stack(layers), *map(nnx.state, blocks))
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *keys)

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        weights, pair = layer
        return step(nnx.merge(graph, weights), x, *pair), None

    return jax.lax.scan(body, x, (weights, stacked))[0]


LAYERS = {False: unrolled, True: scanned}
"""`model.scan_layers` -> the way through the layers."""
