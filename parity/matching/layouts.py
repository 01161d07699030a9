"""How an array in JAX's layout can become one of torch's shape: the usual changes first, others where values decide."""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import permutations
from math import prod

import numpy as np

from parity.transforms import Transform, chain, identity, reshape, transpose

__all__ = ["Layout", "all_layouts", "apply", "lifted", "to_transform", "undo", "usual_layouts"]

Shape = tuple[int, ...]
Step = tuple[str, tuple[int, ...]]
Layout = tuple[Step, ...]
"""Steps from JAX's layout to torch's: ("reshape", shape) and ("transpose", axes)."""

SAMPLE = 4096
"""Maximum number of places of an array at which two layouts are held to be the same."""


@cache
def usual_layouts(jax: Shape, torch: Shape) -> tuple[Layout, ...]:
    """Return the layouts that libraries use between these shapes, the usual one first; empty where none fits.

    Args:
        jax: shape of the JAX array.
        torch: shape of torch's.
    """
    return _fitting(_usual(jax, torch), jax, torch)


@cache
def all_layouts(jax: Shape, torch: Shape) -> tuple[Layout, ...]:
    """Return all layouts by an order of axes and a new shape, the usual ones first; for values to choose from.

    Args:
        jax: shape of the JAX array.
        torch: shape of torch's.
    """
    if prod(jax) != prod(torch):
        return ()
    orders = permutations(range(len(jax))) if len(jax) <= 5 else ()
    more = ((("transpose", order), ("reshape", torch)) for order in orders)
    return _fitting([*_usual(jax, torch), *more], jax, torch)


def _usual(jax: Shape, torch: Shape) -> Iterator[Layout]:
    rank = len(jax)
    if rank == 2:
        yield (("transpose", (1, 0)),)
    if rank in (3, 4, 5):  # HWIO -> OIHW, in one to three dimensions, and of transposed convolutions IOHW
        spatial = tuple(range(rank - 2))
        yield (("transpose", (rank - 1, rank - 2, *spatial)),)
        if rank == len(torch):
            yield ()
        yield (("transpose", (rank - 2, rank - 1, *spatial)),)
    yield ()
    if rank != len(torch) and _long(jax) == _long(torch):  # axes of one
        yield (("reshape", torch),)
    if rank > 2 and len(torch) == 2:  # DenseGeneral: D × N × H, N × H × D, D × 3 × N × H
        for cut in range(1, rank):
            merged = (prod(jax[:cut]), prod(jax[cut:]))
            yield (("reshape", merged), ("transpose", (1, 0)))
        if torch == (prod(jax[:-2]) * jax[-1], jax[-2]):  # an einsum's N × D × H
            yield (("transpose", (*range(rank - 2), rank - 1, rank - 2)), ("reshape", torch))
        for cut in range(1, rank):
            yield (("reshape", (prod(jax[:cut]), prod(jax[cut:]))),)
    if len(torch) == 1 or sorted(_long(jax)) == sorted(_long(torch)):  # a bias N × H; axes of one
        if _long(jax) == _long(torch) or len(torch) == 1:
            yield (("reshape", torch),)
        elif _long(jax)[::-1] == _long(torch) and rank != len(torch):
            yield (("transpose", tuple(range(rank))[::-1]), ("reshape", torch))
    if rank == 2 and len(torch) > 2:  # a kernel of one position, such as a patch embedding's; heads apart in torch
        yield (("transpose", (1, 0)), ("reshape", torch))
        yield (("reshape", torch),)
    if len(torch) == 2 and rank == 4:  # a patch embedding as a convolution in JAX and a matrix in torch
        yield (("transpose", (3, 2, 0, 1)), ("reshape", torch))


def _long(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _fitting(layouts: Iterable[Layout], jax: Shape, torch: Shape) -> tuple[Layout, ...]:
    """Return the layouts that give torch's shape, each that does the same once."""
    if prod(jax) != prod(torch):
        return ()
    size = prod(jax)
    points = np.arange(size) if size <= SAMPLE else np.random.default_rng(0).integers(0, size, SAMPLE)
    found: dict[bytes, Layout] = {}
    for layout in layouts:
        if _shape_of(layout, jax) == torch:
            found.setdefault(_sources(layout, jax, points).tobytes(), layout)
    return tuple(found.values())


def _sources(layout: Layout, shape: Shape, points: np.ndarray) -> np.ndarray:
    """Return the place in JAX's array, counted row by row, that each place in torch's comes from."""
    for (kind, args), before in zip(reversed(layout), reversed(_shapes(layout, shape)[:-1])):
        if kind == "transpose":
            coordinates = np.unravel_index(points, tuple(before[i] for i in args))
            points = np.ravel_multi_index([coordinates[i] for i in np.argsort(args)], before)
    return points


def _shapes(layout: Layout, shape: Shape) -> list[Shape]:
    """Return the shapes before, between and after the steps."""
    shapes = [shape]
    for step in layout:
        shapes.append(_shape_of((step,), shapes[-1]))
    return shapes


def _shape_of(layout: Layout, shape: Shape) -> Shape:
    for kind, args in layout:
        shape = tuple(shape[i] for i in args) if kind == "transpose" else args
    return shape


def apply(layout: Layout, array: np.ndarray) -> np.ndarray:
    """Return an array in torch's layout."""
    for kind, args in layout:
        array = np.transpose(array, args) if kind == "transpose" else array.reshape(args)
    return array


def undo(layout: Layout, array: np.ndarray, shape: Shape) -> np.ndarray:
    """Return torch's array in JAX's layout.

    Args:
        layout: from JAX to torch.
        array: in torch's layout.
        shape: in JAX.
    """
    for (kind, args), before in zip(reversed(layout), reversed(_shapes(layout, shape)[:-1])):
        array = np.transpose(array, np.argsort(args)) if kind == "transpose" else array.reshape(before)
    return array


def lifted(layout: Layout, count: int) -> Layout:
    """Return the layout for arrays that are stacked along a new first axis of this length."""
    return tuple(
        (kind, (0, *(axis + 1 for axis in args))) if kind == "transpose" else (kind, (count, *args))
        for kind, args in layout
    )


def to_transform(layout: Layout, *, before: tuple[Transform, ...] = (), after: tuple[Transform, ...] = ()) -> Transform:
    """Return the transform of `parity.transforms` that does the same.

    Args:
        layout: the steps.
        before: transforms before them.
        after: transforms after them.
    """
    steps = (transpose(*args) if kind == "transpose" else reshape(*args) for kind, args in layout)
    transforms = (*before, *steps, *after)
    return transforms[0] if len(transforms) == 1 else chain(*transforms) if transforms else identity()
