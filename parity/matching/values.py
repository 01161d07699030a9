"""Which arrays of two models are the same, in whatever layout: of weights that both hold, or of their gradients."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from parity.matching.layouts import Layout, all_layouts, apply
from parity.matching.leaves import Leaf

__all__ = ["Differing", "Equal", "differing", "equal_leaves"]

Equal = dict[tuple[int, int], tuple[Layout, ...]]
"""Numbers of a JAX leaf and a torch leaf with the same values -> the layouts under which they are."""
Differing = Callable[[int, int, Layout], bool]
"""Whether a JAX leaf and a torch leaf have other values under a layout."""
TOLERANCE = 1e-6
"""Maximum difference of equal arrays, relative to the largest value."""
DIFFERING = 0.1
"""Minimum difference of arrays that a mistake in a port, such as another eps, does not explain."""


def equal_leaves(
    jax: Sequence[Leaf],
    torch: Sequence[Leaf],
    jax_arrays: Mapping[str, np.ndarray],
    torch_arrays: Mapping[str, np.ndarray],
    smallest: float = 0.0,
    tolerance: float = TOLERANCE,
) -> Equal:
    """Return the pairs of leaves with the same values. Constant arrays, as biases of zeros, say nothing.

    Args:
        jax: leaves of JAX.
        torch: leaves of torch.
        jax_arrays: name of each parameter -> its values; those that are missing are left out.
        torch_arrays: the same of torch.
        smallest: largest magnitude up to which values are rounding.
        tolerance: maximum difference, relative to the largest value.
    """
    ours, theirs = (
        [_values(leaf, arrays, smallest) for leaf in leaves]
        for leaves, arrays in ((jax, jax_arrays), (torch, torch_arrays))
    )
    marks = [(_mark(a), i) for i, a in enumerate(theirs) if a is not None]
    table = np.array([mark for mark, _ in marks]).reshape(len(marks), 4)
    found: Equal = {}
    for i, array in enumerate(ours):
        if array is None or not marks:
            continue
        near = np.isclose(table, _mark(array), rtol=10 * tolerance, atol=10 * tolerance * np.abs(array).max()).all(1)
        for row in np.flatnonzero(near):
            k = marks[row][1]
            other = theirs[k]
            assert other is not None
            limit = tolerance * np.abs(other).max()
            layouts = tuple(
                layout
                for layout in all_layouts(array.shape, other.shape)
                if np.abs(apply(layout, array) - other).max() <= limit
            )
            if layouts:
                found[i, k] = layouts
    return found


def differing(
    jax: Sequence[Leaf],
    torch: Sequence[Leaf],
    jax_arrays: Mapping[str, np.ndarray],
    torch_arrays: Mapping[str, np.ndarray],
    smallest: float,
) -> Differing:
    """Return which pairs have values that differ by far; unknown ones, and those of tied parameters, do not.

    Args:
        jax: leaves of JAX.
        torch: leaves of torch.
        jax_arrays: name of each parameter -> its values.
        torch_arrays: the same of torch.
        smallest: largest magnitude up to which values are rounding.
    """
    tied = {leaf.source for leaf in torch if leaf.label}

    def differ(i: int, k: int, layout: Layout) -> bool:
        if torch[k].source in tied or jax[i].source not in jax_arrays or torch[k].source not in torch_arrays:
            return False
        one = apply(layout, jax[i].of(jax_arrays[jax[i].source]))
        other = torch[k].of(torch_arrays[torch[k].source])
        largest = max(float(np.abs(one).max(initial=0)), float(np.abs(other).max(initial=0)))
        return largest > smallest and float(np.abs(one - other).max(initial=0)) > DIFFERING * largest

    return differ


def _values(leaf: Leaf, arrays: Mapping[str, np.ndarray], smallest: float) -> np.ndarray | None:
    """Return the values of a leaf in float64; None where they say nothing."""
    if leaf.source not in arrays:
        return None
    array = leaf.of(arrays[leaf.source])
    if array.size < 2 or (array == array.flat[0]).all():
        return None
    array = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    if np.abs(array).max() <= smallest:
        return None
    return array if np.isfinite(array).all() else None


def _mark(array: np.ndarray) -> tuple[float, ...]:
    """Return what no layout changes: size, and mean values of x, |x| and x²."""
    size = np.abs(array)
    return float(array.size), float(array.mean().real), float(size.mean()), float(np.sqrt((size**2).mean()))
