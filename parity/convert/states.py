"""A checkpoint of either twin as NumPy arrays: weights, moments and counts, read and written by its `checkpoint.py`.

It uses no accelerator and changes no setting of a framework, so that it can run beside a training process, or inside a
test suite.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.optim.table import OPTIMIZERS
from lmcore.run.base import find_base
from lmcore.run.checkpoints import Checkpoint
from parity.convert.moments import Moments, fill_optax, read_optax, torch_key, zero_moments
from parity.convert.names import Side, table
from parity.convert.shards import write_tensors
from parity.convert.tensors import Stored, Tensors, convert_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["State", "open_weights", "parameter_type", "read_state", "write_state"]

FILE = "model-00001-of-00001.safetensors"
"""Name of a file as DCP gives it."""

Opened = tuple[tuple[int, ...], Callable[[], np.ndarray]]
"""Shape of an array in a checkpoint, and the function that reads it."""


@dataclass(frozen=True)
class State:
    """Everything that a train step changes: with adapters, theirs alone."""

    side: Side
    """Side whose names and layout the arrays have."""
    step: int
    params: Mapping[str, np.ndarray]
    """Name -> array, which may be read when it is asked for."""
    moments: Moments | None
    """None where only the weights were read."""

    def to(self, side: Side, config: Config) -> "State":
        """Return the same state in another side's names and layout, converted when it is read.

        Raises:
            UserError: an array is missing, unknown or wrongly shaped.
        """
        params = convert_tensors(Tensors.of(self.params), config.model, self.side, side, trained=True)
        return State(side, self.step, params, self.moments and self.moments.to(config, self.side, side))


def parameter_type(config: Config) -> np.dtype:
    """Return the dtype of parameters and moments in both twins."""
    return np.dtype(np.float64 if config.train.precision == "float64" else np.float32)


def read_state(checkpoint: Checkpoint, config: Config, optimizer: bool = True) -> State:
    """Open a checkpoint, in its own framework's names; each array is read when it is asked for.

    Args:
        checkpoint: from `lmcore.run.checkpoints`.
        config: its run's.
        optimizer: whether to read the moments too.

    Raises:
        UserError: it cannot be read, or is not what its description says.
    """
    side: Side = "jax" if checkpoint.framework == "jax" else "torch"
    params = _open(checkpoint, config)
    params = convert_tensors(params, config.model, side, side, trained=True)  # raises where one does not fit
    if not optimizer:
        return State(side, checkpoint.step, params, None)
    step, moments = {"jax": _jax_moments, "torch": _torch_moments}[side](checkpoint.state, config)
    if step != checkpoint.step:
        raise UserError(f"{checkpoint.folder}: found the state of step {step}, expected that of step {checkpoint.step}")
    moments.to(config, side, side)
    return State(side, step, params, moments if moments.count >= 0 else replace(moments, count=step))


def open_weights(checkpoint: Checkpoint, config: Config) -> Tensors:
    """Open a checkpoint's weights, in its own framework's names; each is read when it is asked for.

    Those that its adapters adapt are its base's.

    Raises:
        UserError: it cannot be opened.
    """
    if config.model.lora is not None:
        base = open_weights(find_base(checkpoint, verify=False), _without_lora(config))
        return Tensors(base.stored | _open(checkpoint, config).stored)
    return _open(checkpoint, config)


def _without_lora(config: Config) -> Config:
    return replace(config, model=replace(config.model, lora=None))


def _open(checkpoint: Checkpoint, config: Config) -> Tensors:
    """Open the arrays that a checkpoint itself has."""
    _check_framework(checkpoint)
    opened = {"jax": _open_jax, "torch": _open_torch}[checkpoint.framework](checkpoint.state, "params")
    dtype = parameter_type(config)

    def stored(shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> Stored:
        return Stored(shape, dtype, lambda: read().astype(dtype, copy=False))

    return Tensors({name: stored(shape, read) for name, (shape, read) in opened.items()})


def _check_framework(checkpoint: Checkpoint) -> None:
    """Raise UserError unless it is one of the twins' checkpoints."""
    if checkpoint.framework not in ("jax", "torch"):
        raise UserError(f"{checkpoint.folder}: found framework {checkpoint.framework!r}, expected jax or torch")


def write_state(folder: Path, state: State, config: Config) -> Callable[[], None]:
    """Return a function that writes a state as its framework's own checkpoint, a few arrays in memory at a time.

    Args:
        folder: of the framework's own files.
        state: with moments.
        config: the run's.
    """
    assert state.moments is not None
    return {"jax": _write_jax, "torch": _write_torch}[state.side](folder, state, state.moments, config)


def _optax_state(config: Config) -> Any:
    """Return optax's state tree, with shapes in place of arrays."""
    import jax

    from jaxlm.optim import make_optimizer

    shapes = {row.jax: jax.ShapeDtypeStruct(row.shape, np.float32) for row in table(config.model, trained=True)}
    return jax.eval_shape(make_optimizer(config.optim).init, shapes)


def _open_jax(folder: Path, item: str) -> dict[str, Opened]:
    from jaxlm.checkpoint import open_item

    return {name: (each.shape, each.read) for name, each in open_item(folder, item).items()}


def _jax_moments(folder: Path, config: Config) -> tuple[int, Moments]:
    """Return the step and the moments of a jaxlm checkpoint."""
    import jax

    opened, dtype = _open_jax(folder, "optimizer"), parameter_type(config)

    def stored(path: Any, leaf: Any) -> Stored:
        shape, read = _found(opened, jax.tree_util.keystr(path, simple=True, separator="."), folder, "state.")
        return Stored(shape, dtype if leaf.shape else np.dtype(np.int32), read)

    tree = jax.tree_util.tree_map_with_path(stored, _optax_state(config))
    return int(_found(opened, "step", folder)[1]()), read_optax(tree, config)


def _found(opened: dict[str, Opened], name: str, folder: Path, prefix: str = "") -> Opened:
    """Return one of an optimizer's arrays, or raise UserError where it is missing."""
    if prefix + name not in opened:
        raise UserError(f"{folder / 'optimizer'}: found no {prefix}{name}, expected the state of the run's optimizer")
    return opened[prefix + name]


def _write_jax(folder: Path, state: State, moments: Moments, config: Config) -> Callable[[], None]:
    from jaxlm.checkpoint import Unread, save_unread

    def unread(stored: Stored) -> Unread:
        return Unread(stored.shape, stored.dtype, stored.read)

    params = {name: unread(stored) for name, stored in Tensors.of(state.params).stored.items()}
    optimizer = {
        "step": np.array(state.step, np.int32),
        "state": fill_optax(_optax_state(config), moments, config, unread),
    }
    return lambda: save_unread(folder, params, optimizer)


def _open_torch(folder: Path, item: str) -> dict[str, Opened]:
    from torchlm.checkpoint import open_item

    def read(tensor: Callable[[], "Tensor"]) -> np.ndarray:
        return tensor().numpy()

    return {name: (each.shape, partial(read, each.read)) for name, each in open_item(folder, item).items()}


def _torch_moments(folder: Path, config: Config) -> tuple[int, Moments]:
    """Return the step and the moments of a torchlm checkpoint."""
    opened, dtype = _open_torch(folder, "optimizer"), parameter_type(config)
    by_kind = {}
    for kind, arrays in zero_moments(config, "torch", dtype).arrays.items():
        key = torch_key(config.optim, kind)
        found = {name: _found(opened, name, folder, f"{key}.") for name in arrays}
        by_kind[kind] = Tensors({name: Stored(shape, dtype, read) for name, (shape, read) in found.items()})
    step = int(_found(opened, "step", folder)[1]())
    counts = OPTIMIZERS[config.optim.name].counts
    return step, Moments(int(_found(opened, "count", folder)[1]()) if counts else step, by_kind)


def _write_torch(folder: Path, state: State, moments: Moments, config: Config) -> Callable[[], None]:
    from torchlm.checkpoint import open_item

    optimizer = {"step": Stored.of(np.array(state.step, np.int64))}
    if OPTIMIZERS[config.optim.name].counts:
        optimizer["count"] = Stored.of(np.array(moments.count, np.float32))
    for kind, arrays in moments.arrays.items():
        key = torch_key(config.optim, kind)
        optimizer |= {f"{key}.{name}": stored for name, stored in Tensors.of(arrays).stored.items()}

    def write() -> None:
        for item, tensors in (("params", Tensors.of(state.params)), ("optimizer", Tensors(optimizer))):
            (folder / item).mkdir(parents=True)
            write_tensors(folder / item / FILE, tensors, {"format": "pt"})
            assert open_item(folder, item).keys() == tensors.keys()

    return write
