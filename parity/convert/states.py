"""A checkpoint of either twin as NumPy arrays: weights, moments and counts, read and written by its `checkpoint.py`.

It uses no accelerator and changes no setting of a framework, so that it can run beside a training process, or inside a
test suite.
"""

from collections.abc import Callable
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
from parity.convert.names import Side, convert_names, numpy_to_torch, table
from parity.convert.tensors import Stored, Tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["State", "open_weights", "parameter_type", "read_state", "write_state"]

Opened = tuple[tuple[int, ...], Callable[[], np.ndarray]]
"""Shape of an array in a checkpoint, and the function that reads it."""


@dataclass(frozen=True)
class State:
    """Everything that a train step changes: with adapters, theirs alone."""

    side: Side
    """Side whose names and layout the arrays have."""
    step: int
    params: dict[str, np.ndarray]
    moments: Moments | None
    """None where only the weights were read."""

    def to(self, side: Side, config: Config) -> "State":
        """Return the same state in another side's names and layout.

        Raises:
            UserError: an array is missing, unknown or wrongly shaped.
        """
        params = convert_names(self.params, config.model, self.side, side, trained=True)
        return State(side, self.step, params, self.moments and self.moments.to(config, self.side, side))


def parameter_type(config: Config) -> np.dtype:
    """Return the dtype of parameters and moments in both twins."""
    return np.dtype(np.float64 if config.train.precision == "float64" else np.float32)


def read_state(checkpoint: Checkpoint, config: Config, optimizer: bool = True) -> State:
    """Read a checkpoint, in its own framework's names.

    Args:
        checkpoint: from `lmcore.run.checkpoints`.
        config: its run's.
        optimizer: whether to read the moments too.

    Raises:
        UserError: it cannot be read, or is not what its description says.
    """
    _check_framework(checkpoint)
    reader = {"jax": _read_jax, "torch": _read_torch}[checkpoint.framework]
    state = reader(checkpoint.state, config, optimizer)
    if optimizer and state.step != checkpoint.step:
        raise UserError(
            f"{checkpoint.folder}: found the state of step {state.step}, expected that of step {checkpoint.step}"
        )
    return State(state.side, checkpoint.step, state.params, state.moments)


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
    opened = {"jax": _open_jax, "torch": _open_torch}[checkpoint.framework](checkpoint.state)
    dtype = parameter_type(config)

    def stored(shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> Stored:
        return Stored(shape, dtype, lambda: read().astype(dtype, copy=False))

    return Tensors({name: stored(shape, read) for name, (shape, read) in opened.items()})


def _check_framework(checkpoint: Checkpoint) -> None:
    """Raise UserError unless it is one of the twins' checkpoints."""
    if checkpoint.framework not in ("jax", "torch"):
        raise UserError(f"{checkpoint.folder}: found framework {checkpoint.framework!r}, expected jax or torch")


def write_state(folder: Path, state: State, config: Config) -> Callable[[], None]:
    """Write a state as its framework's own checkpoint, in the background; the returned function waits for it.

    Args:
        folder: of the framework's own files.
        state: with moments.
        config: the run's.
    """
    assert state.moments is not None
    return {"jax": _write_jax, "torch": _write_torch}[state.side](folder, state, state.moments, config)


def _empty(config: Config, side: Side) -> dict[str, np.ndarray]:
    return {
        row.name(side): np.empty(row.shape_in(side), parameter_type(config))
        for row in table(config.model, trained=True)
    }


def _optax_state(config: Config, moments: Moments) -> Any:
    """Return optax's state tree with these moments in it."""
    import jax

    from jaxlm.optim import make_optimizer

    shapes = {row.jax: jax.ShapeDtypeStruct(row.shape, np.float32) for row in table(config.model, trained=True)}
    return fill_optax(jax.eval_shape(make_optimizer(config.optim).init, shapes), moments, config)


def _open_jax(folder: Path) -> dict[str, Opened]:
    from jaxlm.checkpoint import open_item

    return {name: (each.shape, each.read) for name, each in open_item(folder, "params").items()}


def _read_jax(folder: Path, config: Config, optimizer: bool) -> State:
    from jaxlm.checkpoint import restore_state

    wanted: dict[str, Any] = {"params": _empty(config, "jax")}
    if optimizer:
        like = _optax_state(config, zero_moments(config, "jax", parameter_type(config)))
        wanted["optimizer"] = {"step": np.empty((), np.int32), "state": like}
    read = restore_state(folder, **wanted)
    if not optimizer:
        return State("jax", 0, read["params"], None)
    step, moments = int(read["optimizer"]["step"]), read_optax(read["optimizer"]["state"], config)
    return State("jax", step, read["params"], moments if moments.count >= 0 else replace(moments, count=step))


def _write_jax(folder: Path, state: State, moments: Moments, config: Config) -> Callable[[], None]:
    from jaxlm.checkpoint import save_state

    step = np.array(state.step, np.int32)
    return save_state(folder, state.params, {"step": step, "state": _optax_state(config, moments)})


def _open_torch(folder: Path) -> dict[str, Opened]:
    from torchlm.checkpoint import open_item

    def read(tensor: Callable[[], "Tensor"]) -> np.ndarray:
        return tensor().numpy()

    return {name: (each.shape, partial(read, each.read)) for name, each in open_item(folder, "params").items()}


def _read_torch(folder: Path, config: Config, optimizer: bool) -> State:
    import torch

    from torchlm.checkpoint import restore_state

    params = {name: torch.from_numpy(array) for name, array in _empty(config, "torch").items()}
    if not optimizer:
        restore_state(folder, params=params)
        return State("torch", 0, {name: tensor.numpy() for name, tensor in params.items()}, None)
    read = _torch_tensors(0, zero_moments(config, "torch", parameter_type(config)), config)
    restore_state(folder, params=params, optimizer=read)
    zeros = zero_moments(config, "torch", parameter_type(config))
    by_kind = {
        kind: {name: read[f"{torch_key(config.optim, kind)}.{name}"].numpy() for name in arrays}
        for kind, arrays in zeros.arrays.items()
    }
    step = int(read["step"])
    moments = Moments(int(read.get("count", step)), by_kind)
    return State("torch", step, {name: tensor.numpy() for name, tensor in params.items()}, moments)


def _write_torch(folder: Path, state: State, moments: Moments, config: Config) -> Callable[[], None]:
    from torchlm.checkpoint import save_state

    params = {name: numpy_to_torch(array) for name, array in state.params.items()}
    return save_state(folder, params, _torch_tensors(state.step, moments, config))


def _torch_tensors(step: int, moments: Moments, config: Config) -> "dict[str, Tensor]":
    """Return the optimizer's tensors of a torchlm checkpoint."""
    import torch

    tensors = {"step": torch.tensor(step)}
    if OPTIMIZERS[config.optim.name].counts:
        tensors["count"] = torch.tensor(float(moments.count))
    for kind, arrays in moments.arrays.items():
        key = torch_key(config.optim, kind)
        tensors |= {f"{key}.{name}": numpy_to_torch(array) for name, array in arrays.items()}
    return tensors
