"""Two ways to apply the blocks: each unrolled in the program, or one block in a `lax.scan` over stacked weights.

The scan comes with a stacked form of everything that is stored per parameter, so that the update too is compiled once
for all layers: `layers.0.mlp.up_proj.kernel`, `layers.1.mlp.up_proj.kernel`, … become `layers.*.mlp.up_proj.kernel`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlm.dropout import Key

__all__ = ["LAYERS", "STACK", "Step", "scanned", "stack_layers", "unrolled", "unstack_layers"]

STACK = "layers.*."
"""How the name of a stacked parameter begins."""
Tree = TypeVar("Tree")

Step = Callable[[Any, Array, Key, Key], Array]
"""Applies a block to activations, with a key for its attention weights and one for its branches."""


def unrolled(
    step: Step, blocks: Sequence[nnx.Module], x: Float[Array, "B T D"], keys: Sequence[tuple[Key, Key]]
) -> Float[Array, "B T D"]:
    """Apply the blocks one after another, unrolled: the compile time grows with their number.

    Args:
        step: applies one block.
        blocks: the blocks, in order.
        x: the residual stream.
        keys: dropout keys of each block: for its attention weights, and for its branches.
    """
    for block, pair in zip(blocks, keys, strict=True):
        x = step(block, x, *pair)
    return x


def scanned(
    step: Step,
    blocks: Sequence[nnx.Module],
    x: Float[Array, "B T D"],
    keys: Sequence[tuple[Key, Key]],
    weights: Any = None,
) -> Float[Array, "B T D"]:
    """Apply one block, compiled once, in a loop over the layers' stacked weights.

    Args:
        step: applies one block.
        blocks: the blocks, in order; the first is the one that is compiled.
        x: the residual stream.
        keys: dropout keys of each block: for its attention weights, and for its branches.
        weights: the blocks' states, stacked along a leading axis L; None stacks those of `blocks`.
    """
    graph, _ = nnx.split(blocks[0])
    if weights is None:
        weights = jax.tree.map(lambda *layers: jnp.stack(layers), *map(nnx.state, blocks))
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *keys)

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        weights, pair = layer
        return step(nnx.merge(graph, weights), x, *pair), None

    return jax.lax.scan(body, x, (weights, stacked))[0]


LAYERS = {False: unrolled, True: scanned}
"""`model.scan_layers` -> the function that applies the blocks."""


def stack_layers(tree: Tree) -> Tree:
    """Stack the layers along a new leading axis L, in every dict of the tree that is keyed by parameter names."""

    # The tree may be a parameter dict, a train state or an optimizer's state of any depth: whatever dict is keyed by
    # parameters' names is stacked, and all else, such as a count of updates, stays as it is.
    def stack(node: Any) -> Any:
        if not _names_parameters(node):
            return node
        by_name: dict[str, dict[int, Any]] = {}
        for name, value in node.items():
            layer = re.match(r"layers\.(\d+)\.", name)
            stacked_name, index = (STACK + name[layer.end() :], int(layer[1])) if layer else (name, 0)
            by_name.setdefault(stacked_name, {})[index] = value
        return {
            name: jax.tree.map(lambda *a: jnp.stack(a), *(layers[i] for i in range(len(layers))))
            if name.startswith(STACK)
            else layers[0]
            for name, layers in by_name.items()
        }

    return jax.tree.map(stack, tree, is_leaf=_names_parameters)


def unstack_layers(tree: Tree, n_layers: int) -> Tree:
    """Undo `stack_layers`."""

    def unstack(node: Any) -> Any:
        if not _names_parameters(node):
            return node
        unstacked = {}
        for name, value in node.items():
            if name.startswith(STACK):
                for i in range(n_layers):
                    unstacked[f"layers.{i}.{name.removeprefix(STACK)}"] = jax.tree.map(lambda a, i=i: a[i], value)
            else:
                unstacked[name] = value
        return unstacked

    return jax.tree.map(unstack, tree, is_leaf=_names_parameters)


def _names_parameters(node: Any) -> bool:
    return isinstance(node, dict) and any(name.startswith("layers.") for name in node)
