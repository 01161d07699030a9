"""What each optimizer remembers of a run, under one set of names: those of optax and torch map onto it.

The kinds are those of `lmcore.optim.table`; of a matrix, `rows` and `columns` are meant as the array lies.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmcore.config import Config, OptimConfig
from lmcore.optim.table import kinds_of
from parity.convert.names import IDENTITY, Row, Side, convert_rows, table

__all__ = ["KINDS", "TORCH", "Moments", "fill_optax", "read_optax", "torch_key", "zero_moments"]

KINDS = {
    "mean": "first moment m",
    "square": "second moment v",
    "momentum": "momentum",
    "rows": "row means of v",
    "columns": "column means of v",
}
"""Kind -> what it is called in a report."""

SWAPPED = {"rows": "columns", "columns": "rows"}
OPTAX = {"mu": "mean", "nu": "square", "trace": "momentum"}
TORCH = {
    "exp_avg": "mean",
    "exp_avg_sq": "square",
    "variance": "square",
    "momentum_buffer": "momentum",
    "row_var": "rows",
    "col_var": "columns",
}
"""What an optimizer of torch calls a kind -> the kind."""


@dataclass(frozen=True)
class Moments:
    """All that an optimizer remembers."""

    count: int
    """Updates that it has made: fewer than steps where float16 left some out."""
    kept: dict[str, dict[str, np.ndarray]]
    """Kind -> by parameter."""

    def to(self, config: Config, source: Side, target: Side) -> "Moments":
        """The same in another side's names and layout.

        Raises:
            UserError: an array is missing, unknown or wrongly shaped.
        """
        kept: dict[str, dict[str, np.ndarray]] = {}
        for kind, arrays in self.kept.items():
            rows = [row for row in table(config.model) if kind in kinds_of(config.optim.name, row.jax, len(row.shape))]
            found = convert_rows(arrays, [_part(row, kind, source) for row in rows], source, target)
            for row in rows:
                turned = row.transform is not IDENTITY and (source == "jax") != (target == "jax")
                there = SWAPPED.get(kind, kind) if turned else kind
                kept.setdefault(there, {})[row.name(target)] = found[row.name(target)]
        return Moments(self.count, kept)


def zero_moments(config: Config, side: Side, kind_of_number: np.dtype) -> Moments:
    """Before the first update."""
    kept: dict[str, dict[str, np.ndarray]] = {}
    for row in table(config.model):
        for kind in kinds_of(config.optim.name, row.jax, len(row.shape)):
            shape = _part(row, kind, side).shape_in(side)
            kept.setdefault(kind, {})[row.name(side)] = np.zeros(shape, kind_of_number)
    return Moments(0, kept)


def _part(row: Row, kind: str, side: Side) -> Row:
    """The row of a parameter, with the shape that a kind has of it, which `side` calls so."""
    if kind not in SWAPPED:
        return row
    kind = kind if side == "jax" or row.transform is IDENTITY else SWAPPED[kind]
    return replace(row, shape=(row.shape[0], 1) if kind == "rows" else (1, row.shape[1]))


def torch_key(optim: OptimConfig, kind: str) -> str:
    """What the optimizer calls a kind in torch."""
    if optim.name == "adafactor" and kind == "square":
        return "variance"
    return next(key for key, found in TORCH.items() if found == kind)


def read_optax(state: Any, config: Config) -> Moments:
    """What optax's tree holds; an optimizer that does not count its updates gives −1."""
    import jax

    shapes = {row.jax: row.shape for row in table(config.model)}
    count = -1
    kept: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        field, name = _place(path)
        if name is None:
            count = int(leaf)
        elif kind := _kind(field, shapes[name]):
            array = np.asarray(leaf)
            lying = {"rows": (-1, 1), "columns": (1, -1)}.get(kind, array.shape)
            kept.setdefault(kind, {})[name] = array.reshape(lying)
    return Moments(count, {kind: kept[kind] for kind in KINDS if kind in kept})


def fill_optax(abstract: Any, moments: Moments, config: Config) -> Any:
    """optax's tree, given as shapes, with these numbers in it."""
    import jax

    shapes = {row.jax: row.shape for row in table(config.model)}

    def value(path: Any, leaf: Any) -> np.ndarray:
        field, name = _place(path)
        if name is None:
            return np.array(moments.count, np.int32)
        kind = _kind(field, shapes[name])
        if kind is None:
            return np.zeros(leaf.shape, next(_arrays(moments)).dtype)
        return moments.kept[kind][name].reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(value, abstract)


def _arrays(moments: Moments) -> Iterator[np.ndarray]:
    return (array for arrays in moments.kept.values() for array in arrays.values())


def _place(path: Any) -> tuple[str, str | None]:
    """Field of optax's state that a leaf is in, and its parameter; None for the count of updates."""
    fields = [key.name for key in path if hasattr(key, "name")]
    return fields[-1], getattr(path[-1], "key", None)


def _kind(field: str, shape: tuple[int, ...]) -> str | None:
    """Kind that a field of optax's state holds of a parameter; None where a factored one leaves it empty.

    optax averages `v_row` over the longer axis and `v_col` over the shorter; of two equal ones, the last is the longer.
    """
    if field not in ("v", "v_row", "v_col"):
        return OPTAX[field]
    if (field == "v") != (len(shape) == 1):
        return None
    if field == "v":
        return "square"
    longer = int(np.argsort(shape)[-1])
    return "rows" if (field == "v_row") == (longer == 1) else "columns"
