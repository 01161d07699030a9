"""Arrays by name that are read when they are asked for, so that a conversion has one of them in memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from lmcore.config import ModelConfig
from lmcore.model.lora import adapter_layers, is_adapter
from parity.convert.names import Row, Side, convert_names, convert_rows, table

__all__ = [
    "Stored",
    "Tensors",
    "convert_stored",
    "convert_tensors",
    "finite",
    "merge_adapters",
    "row_blocks",
    "watched",
]

BLOCK_BYTES = 1 << 26
"""Arrays are checked and written in blocks of at most this size."""


@dataclass(frozen=True)
class Stored:
    """An array that is not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    """Return the array, which may be a view that is not contiguous."""

    @classmethod
    def of(cls, array: np.ndarray) -> "Stored":
        """Describe an array that is in memory."""
        return cls(array.shape, array.dtype, lambda: array)

    def reshape(self, shape: tuple[int, ...]) -> "Stored":
        """Return the array in another shape."""
        return self.then(lambda array: array.reshape(shape), shape)

    def then(self, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "Stored":
        """Return the array that `change` makes of it, when it is read."""
        return Stored(shape, self.dtype, lambda: change(self.read()))


class Tensors(Mapping[str, np.ndarray]):
    """Name -> array; each access reads it again, and nothing is kept."""

    def __init__(self, stored: Mapping[str, Stored]):
        """Take what describes each array."""
        self.stored = dict(stored)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Tensors":
        """Describe arrays that are in memory; what is described already is returned as it is."""
        if isinstance(arrays, Tensors):
            return arrays
        return cls({name: Stored.of(array) for name, array in arrays.items()})

    def astype(self, dtype: np.dtype) -> "Tensors":
        """Return the same arrays, each converted when it is read."""
        return Tensors(
            {name: Stored(each.shape, dtype, partial(_converted, each, dtype)) for name, each in self.stored.items()}
        )

    def __getitem__(self, name: str) -> np.ndarray:
        return self.stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored


def _converted(stored: Stored, dtype: np.dtype) -> np.ndarray:
    return stored.read().astype(dtype, copy=False)


def convert_tensors(tensors: Tensors, model: ModelConfig, source: Side, target: Side, trained: bool = False) -> Tensors:
    """Convert names and layouts as `convert_names` does, when an array is read.

    Args:
        tensors: the arrays of a model on the source's side.
        model: shape of the model.
        source: side that they come from.
        target: side that they go to.
        trained: whether they are those of the trained parameters alone.

    Raises:
        UserError: arrays are missing, unknown or wrongly shaped; the message names each.
    """
    # An array of a type without bytes has a shape and takes no memory.
    shapes = {name: np.empty(each.shape, "V0") for name, each in tensors.stored.items()}
    convert_names(shapes, model, source, target, trained)
    return _by_rows(tensors, table(model, trained), source, target)


def convert_stored(tensors: Tensors, rows: Sequence[Row], source: Side, target: Side) -> Tensors:
    """Convert names and layouts as `convert_rows` does, when an array is read; see `convert_tensors`."""
    convert_rows({name: np.empty(each.shape, "V0") for name, each in tensors.stored.items()}, rows, source, target)
    return _by_rows(tensors, rows, source, target)


def _by_rows(tensors: Tensors, rows: Sequence[Row], source: Side, target: Side) -> Tensors:
    result = {}
    for row in rows:
        stored = tensors.stored[row.name(source)]
        if (source == "jax") != (target == "jax"):
            stored = stored.then(
                row.transform.forward if source == "jax" else row.transform.inverse, row.shape_in(target)
            )
        result[row.name(target)] = stored
    return Tensors(result)


def merge_adapters(tensors: Tensors, model: ModelConfig, side: Side) -> Tensors:
    """Return the weights of the same model without adapters: W + α/r · B A, computed when a weight is read.

    Args:
        tensors: all of a model's, those of the adapters included.
        model: with its `lora`.
        side: whose names and layout they have.
    """
    assert model.lora is not None
    scale = model.lora.scale
    merged = {name: each for name, each in tensors.stored.items() if not is_adapter(name)}
    prefix, leaf = "model." if side == "hf" else "", "kernel" if side == "jax" else "weight"

    def sum_of(base: Stored, left: Stored, right: Stored) -> np.ndarray:
        wide = np.promote_types(np.float32, base.dtype) if base.dtype != ml_dtypes.bfloat16 else np.dtype(np.float32)
        w, a, b = (each.read().astype(wide) for each in (base, left, right))
        return (w + wide.type(scale) * (a @ b)).astype(base.dtype)

    for layer in adapter_layers(model):
        pair = [tensors.stored[f"{prefix}{layer}.{name}.{leaf}"] for name in ("lora_A", "lora_B")]
        left, right = pair if side == "jax" else reversed(pair)
        base = merged[f"{prefix}{layer}.{leaf}"]
        merged[f"{prefix}{layer}.{leaf}"] = Stored(base.shape, base.dtype, partial(sum_of, base, left, right))
    return Tensors(merged)


def row_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array, which may be transposed, in contiguous blocks of whole rows."""
    if array.nbytes <= BLOCK_BYTES or array.ndim < 2:
        yield np.ascontiguousarray(array)
        return
    step = max(1, BLOCK_BYTES * len(array) // array.nbytes)
    for begin in range(0, len(array), step):
        yield np.ascontiguousarray(array[begin : begin + step])


def finite(array: np.ndarray) -> bool:
    """Return whether no value is NaN or infinite."""
    return all(np.isfinite(block).all() for block in row_blocks(array))


def watched(tensors: Tensors, broken: list[str]) -> Tensors:
    """Return the same arrays; the name of each that is not finite is appended to `broken` when it is read."""

    def read(name: str, stored: Stored) -> np.ndarray:
        array = stored.read()
        if name not in broken and not finite(array):
            broken.append(name)
        return array

    return Tensors(
        {
            name: Stored(stored.shape, stored.dtype, partial(read, name, stored))
            for name, stored in tensors.stored.items()
        }
    )
