"""A loop over stacked weights applies the same blocks in the same order, and stacks are taken apart as they were."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.layers import LAYERS, scanned, stack_layers, unrolled, unstack_layers


def test_stacks_keep_the_order_of_the_layers() -> None:
    params = {f"layers.{i}.{name}": jnp.full(3, i + shift) for i in range(12) for name, shift in (("a", 0), ("b", 50))}
    tree = {"muon": params | {"norm": jnp.zeros(3)}}, jnp.int32(4)
    tree = jax.tree.map(lambda x: x, tree)  # which sorts by name, as jit does
    stacked = stack_layers(tree)
    assert stacked[0]["muon"].keys() == {"layers.*.a", "layers.*.b", "norm"}
    np.testing.assert_array_equal(stacked[0]["muon"]["layers.*.b"][:, 0], 50 + np.arange(12))
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked, 12), tree)


class Affine(nnx.Module):
    """A block that depends on its place: applied in another order, it gives another result."""

    def __init__(self, scale: float, shift: float):
        self.scale, self.shift = nnx.Param(jnp.asarray(scale)), nnx.Param(jnp.asarray(shift))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...] + self.shift[...]


def test_a_loop_applies_the_blocks_in_their_order() -> None:
    blocks = [Affine(2.0, 1.0), Affine(3.0, -1.0), Affine(0.5, 4.0)]
    x, keys = jnp.zeros((1, 1, 2)), [(None, None)] * 3
    for apply in (unrolled, scanned):
        found = apply(lambda block, x, *keys: block(x), blocks, x, keys)
        np.testing.assert_allclose(found, np.full((1, 1, 2), ((0 * 2 + 1) * 3 - 1) * 0.5 + 4))
    weights = jax.tree.map(lambda *layers: jnp.stack(layers[::-1]), *map(nnx.state, blocks))
    found = scanned(lambda block, x, *keys: block(x), blocks, x, keys, weights)
    np.testing.assert_allclose(found, np.full((1, 1, 2), ((0 * 0.5 + 4) * 3 - 1) * 2 + 1))
    assert {False: unrolled, True: scanned} == LAYERS


def test_what_names_no_layer_is_left_as_it_is() -> None:
    tree = {"count": jnp.int32(3), "norm.weight": jnp.ones(2)}
    assert stack_layers(tree) == tree
    assert unstack_layers(tree, 2) == tree
