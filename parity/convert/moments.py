"""Optimizer state under one set of names, to which those of optax and torch are mapped.

The kinds of state are those of `lmcore.optim.table`; `rows` and `columns` are those of the array as it is stored.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lmcore.config import Config, OptimConfig
from lmcore.optim.table import kinds_of
from parity.convert.names import IDENTITY, Row, Side, table
from parity.convert.tensors import Stored, Tensors, convert_stored

__all__ = ["KINDS", "TORCH", "Moments", "fill_optax", "read_optax", "torch_key", "zero_moments"]

KINDS = {
    "mean": "first moment m",
    "square": "second moment v",
    "momentum": "momentum",
    "rows": "row means of v",
    "columns": "column means of v",
}
"""Kind of optimizer state -> its name in a report."""

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
"""Name in the state of a torch optimizer -> kind."""


@dataclass(frozen=True)
class Moments:
    """The state of an optimizer."""

    count: int
    """Number of updates: fewer than steps where float16 skipped some."""
    arrays: Mapping[str, Mapping[str, np.ndarray]]
    """Kind -> parameter -> array, which may be read when it is asked for."""

    def in_memory(self) -> dict[str, dict[str, np.ndarray]]:
        """Return kind -> parameter -> array, all of them read."""
        return {kind: dict(arrays) for kind, arrays in self.arrays.items()}

    def to(self, config: Config, source: Side, target: Side) -> "Moments":
        """Return the same state in another side's names and layout, converted when it is read.

        Raises:
            UserError: an array is missing, unknown or wrongly shaped.
        """
        by_kind: dict[str, dict[str, Stored]] = {}
        for kind, arrays in self.arrays.items():
            rows = [
                row
                for row in table(config.model, trained=True)
                if kind in kinds_of(config.optim.name, row.jax, len(row.shape))
            ]
            own = [_state_row(row, kind, source) for row in rows]
            converted = convert_stored(Tensors.of(arrays), own, source, target).stored
            for row in rows:
                transposed = row.transform is not IDENTITY and (source == "jax") != (target == "jax")
                target_kind = SWAPPED.get(kind, kind) if transposed else kind
                by_kind.setdefault(target_kind, {})[row.name(target)] = converted[row.name(target)]
        return Moments(self.count, {kind: Tensors(stored) for kind, stored in by_kind.items()})


def zero_moments(config: Config, side: Side, dtype: np.dtype) -> Moments:
    """Return the state before the first update, all zeros.

    Args:
        config: model and optimizer.
        side: whose names and layout to use.
        dtype: of the arrays.
    """
    by_kind: dict[str, dict[str, Stored]] = {}
    for row in table(config.model, trained=True):
        for kind in kinds_of(config.optim.name, row.jax, len(row.shape)):
            shape = _state_row(row, kind, side).shape_in(side)
            by_kind.setdefault(kind, {})[row.name(side)] = Stored(shape, dtype, partial(np.zeros, shape, dtype))
    return Moments(0, {kind: Tensors(stored) for kind, stored in by_kind.items()})


def _state_row(row: Row, kind: str, side: Side) -> Row:
    """Return the table row of a parameter with the shape of one kind of its state, named as `side` names it."""
    if kind not in SWAPPED:
        return row
    kind = kind if side == "jax" or row.transform is IDENTITY else SWAPPED[kind]
    return replace(row, shape=(row.shape[0], 1) if kind == "rows" else (1, row.shape[1]))


def torch_key(optim: OptimConfig, kind: str) -> str:
    """Return the name of a kind in the state of the torch optimizer."""
    if optim.name == "adafactor" and kind == "square":
        return "variance"
    return next(key for key, torch_kind in TORCH.items() if torch_kind == kind)


def read_optax(state: Any, config: Config) -> Moments:
    """Read the state from optax's tree, of arrays or of `Stored`; the count is −1 where no updates are counted."""
    import jax

    shapes = {row.jax: row.shape for row in table(config.model)}
    count = -1
    by_kind: dict[str, dict[str, Stored]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        field, name = _field_and_parameter(path)
        stored = leaf if isinstance(leaf, Stored) else Stored.of(np.asarray(leaf))
        if name is None:
            count = int(stored.read())
        elif kind := _kind(field, shapes[name]):
            size = math.prod(stored.shape)
            shape = {"rows": (size, 1), "columns": (1, size)}.get(kind, stored.shape)
            by_kind.setdefault(kind, {})[name] = stored.reshape(shape)
    return Moments(count, {kind: Tensors(by_kind[kind]) for kind in KINDS if kind in by_kind})


def _read(stored: Stored) -> np.ndarray:
    return stored.read()


def fill_optax(abstract: Any, moments: Moments, config: Config, leaf_of: Callable[[Stored], Any] = _read) -> Any:
    """Return optax's state tree filled with these moments.

    Args:
        abstract: the tree, with shapes in place of arrays.
        moments: in JAX's names and layout.
        config: model and optimizer.
        leaf_of: what to put into the tree for an array; the array itself, if not given.
    """
    import jax

    shapes = {row.jax: row.shape for row in table(config.model, trained=True)}
    kinds = {kind: Tensors.of(arrays).stored for kind, arrays in moments.arrays.items()}
    dtype = next(each.dtype for stored in kinds.values() for each in stored.values())

    def value(path: Any, leaf: Any) -> Any:
        field, name = _field_and_parameter(path)
        if name is None:
            return np.array(moments.count, np.int32)
        kind = _kind(field, shapes[name])
        if kind is None:
            return leaf_of(Stored(leaf.shape, dtype, partial(np.zeros, leaf.shape, dtype)))
        return leaf_of(kinds[kind][name].reshape(leaf.shape))

    return jax.tree_util.tree_map_with_path(value, abstract)


def _field_and_parameter(path: Any) -> tuple[str, str | None]:
    """Return the field of optax's state that holds a leaf, and its parameter; None for the count of updates."""
    fields = [key.name for key in path if hasattr(key, "name")]
    return fields[-1], getattr(path[-1], "key", None)


def _kind(field: str, shape: tuple[int, ...]) -> str | None:
    """Return the kind that a field of optax's state holds of a parameter; None where factoring leaves it empty.

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
