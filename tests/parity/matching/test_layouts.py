"""Layouts fit the shapes, the usual one comes first, and each can be undone."""

import numpy as np
import pytest

from parity.matching.layouts import all_layouts, apply, lifted, to_transform, undo, usual_layouts
from parity.transforms import concat


@pytest.mark.parametrize(
    ("jax", "torch", "first"),
    [
        ((4,), (4,), "identity()"),
        ((4, 6), (6, 4), "transpose(1, 0)"),
        ((4, 4), (4, 4), "transpose(1, 0)"),
        ((9, 4), (9, 4), "identity()"),
        ((3, 3, 2, 8), (8, 2, 3, 3), "transpose(3, 2, 0, 1)"),
        ((7, 7, 1, 8), (8, 1, 7, 7), "transpose(3, 2, 0, 1)"),
        ((3, 6, 8), (8, 6, 3), "transpose(2, 1, 0)"),
        ((2, 3, 4, 5, 6), (6, 5, 2, 3, 4), "transpose(4, 3, 0, 1, 2)"),
        ((12, 2, 4), (8, 12), "chain(reshape(12, 8), transpose(1, 0))"),
        ((2, 4, 12), (12, 8), "chain(reshape(8, 12), transpose(1, 0))"),
        ((2, 12, 4), (8, 12), "chain(transpose(0, 2, 1), reshape(8, 12))"),
        ((12, 3, 2, 4), (24, 12), "chain(reshape(12, 24), transpose(1, 0))"),
        ((2, 4), (8,), "reshape(8,)"),
        ((1, 5, 8), (5, 8), "reshape(5, 8)"),
        ((8,), (8, 1, 1), "reshape(8, 1, 1)"),
    ],
)
def test_the_usual_layout_comes_first(jax: tuple, torch: tuple, first: str):
    layouts = usual_layouts(jax, torch)
    assert str(to_transform(layouts[0])) == first
    array = np.random.default_rng(0).standard_normal(jax)
    for layout in all_layouts(jax, torch):
        made = apply(layout, array)
        assert made.shape == torch
        np.testing.assert_array_equal(undo(layout, made, jax), array)
        np.testing.assert_array_equal(to_transform(layout).bind((jax,)).forward([array])[0], made)


def test_shapes_that_no_layout_joins():
    assert usual_layouts((4, 6), (5, 5)) == all_layouts((4, 6), (5, 5)) == ()
    assert usual_layouts((4, 6), (3, 8)) == ()


def test_every_layout_does_something_else():
    array = np.arange(64.0).reshape(4, 4, 4)
    made = {apply(layout, array).tobytes() for layout in all_layouts((4, 4, 4), (4, 4, 4))}
    assert len(made) == len(all_layouts((4, 4, 4), (4, 4, 4))) == 6
    assert len(usual_layouts((4, 4), (4, 4))) == 2
    assert len(usual_layouts((300, 300), (300, 300))) == 2  # more values than are sampled


def test_a_lifted_layout_works_on_every_layer():
    [layout] = usual_layouts((12, 2, 4), (8, 12))
    array = np.random.default_rng(0).standard_normal((3, 12, 2, 4))
    np.testing.assert_array_equal(apply(lifted(layout, 3), array), [apply(layout, layer) for layer in array])
    assert str(to_transform(layout, after=(concat(0),))).endswith("transpose(1, 0), concat(axis=0))")
