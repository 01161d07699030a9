"""A checkpoint of either twin as NumPy arrays: weights, AdamW's moments and counts, read and written by the twin's own
`checkpoint.py`.

No device is touched and no setting of a framework changed, so that this can run beside a training process, or inside a
test suite.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.checkpoints import Checkpoint
from lmcore.config import Config
from lmcore.errors import UserError
from parity.mapping import Side, convert_names, numpy_to_torch, table

__all__ = ["Moments", "State", "parameter_type", "read_state", "write_state"]


@dataclass(frozen=True)
class Moments:
    """What AdamW remembers."""

    count: int
    """Updates that it has made: fewer than steps where float16 left some out."""
    mean: dict[str, np.ndarray]
    """Running mean of gradients, by parameter: `mu` in optax, `exp_avg` in torch."""
    square: dict[str, np.ndarray]
    """Running mean of their squares: `nu` in optax, `exp_avg_sq` in torch."""


@dataclass(frozen=True)
class State:
    """All that changes in training."""

    side: Side
    """Whose names and layout the arrays have."""
    step: int
    params: dict[str, np.ndarray]
    moments: Moments | None
    """None where only the weights were read."""

    def to(self, side: Side, config: Config) -> "State":
        """The same state in another side's names and layout.

        Raises:
            UserError: an array is missing, unknown or wrongly shaped.
        """

        def convert(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return convert_names(arrays, config.model, self.side, side)

        moments = self.moments and Moments(self.moments.count, convert(self.moments.mean), convert(self.moments.square))
        return State(side, self.step, convert(self.params), moments)


def parameter_type(config: Config) -> np.dtype:
    """Type in which the twins keep parameters and moments."""
    return np.dtype(np.float64 if config.train.precision == "float64" else np.float32)


def read_state(checkpoint: Checkpoint, config: Config, optimizer: bool = True) -> State:
    """Read a checkpoint, in its own framework's names.

    Args:
        checkpoint: from `lmcore.checkpoints`.
        config: its run's.
        optimizer: whether to read the moments too.

    Raises:
        UserError: it cannot be read, or is not what its description says.
    """
    readers = {"jax": _read_jax, "torch": _read_torch}
    if checkpoint.framework not in readers:
        raise UserError(f"{checkpoint.folder}: found framework {checkpoint.framework!r}, expected jax or torch")
    state = readers[checkpoint.framework](checkpoint.state, config, optimizer)
    if optimizer and state.step != checkpoint.step:
        raise UserError(
            f"{checkpoint.folder}: found the state of step {state.step}, expected that of step {checkpoint.step}"
        )
    return State(state.side, checkpoint.step, state.params, state.moments)


def write_state(folder: Path, state: State, config: Config) -> Callable[[], None]:
    """Write a state as its framework's own checkpoint; the returned function finishes."""
    assert state.moments is not None
    return {"jax": _write_jax, "torch": _write_torch}[state.side](folder, state, state.moments, config)


def _empty(config: Config, side: Side) -> dict[str, np.ndarray]:
    return {row.name(side): np.empty(row.shape_in(side), parameter_type(config)) for row in table(config.model)}


def _optax_state(config: Config, count: np.ndarray, mean: dict[str, Any], square: dict[str, Any]) -> Any:
    """optax's own tree with these moments in it."""
    import jax
    import optax

    from jaxlm.optim import make_optimizer

    shapes = {name: jax.ShapeDtypeStruct(array.shape, np.float32) for name, array in mean.items()}
    abstract = jax.eval_shape(make_optimizer(config.optim).init, shapes)
    return optax.tree.set(abstract, count=count, mu=mean, nu=square)


def _read_jax(folder: Path, config: Config, optimizer: bool) -> State:
    import optax

    from jaxlm.checkpoint import restore_state

    wanted: dict[str, Any] = {"params": _empty(config, "jax")}
    if optimizer:
        moments = _empty(config, "jax"), _empty(config, "jax")
        adam = _optax_state(config, np.empty((), np.int32), *moments)
        wanted["optimizer"] = {"step": np.empty((), np.int32), "state": adam}
    try:
        read = restore_state(folder, **wanted)
    except (OSError, ValueError, KeyError, TypeError) as error:  # Orbax has no error of its own
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{folder}: cannot be read ({reason}); take another checkpoint") from error
    if not optimizer:
        return State("jax", 0, read["params"], None)
    count, mean, square = (optax.tree.get(read["optimizer"]["state"], name) for name in ("count", "mu", "nu"))
    return State("jax", int(read["optimizer"]["step"]), read["params"], Moments(int(count), mean, square))


def _write_jax(folder: Path, state: State, moments: Moments, config: Config) -> Callable[[], None]:
    from jaxlm.checkpoint import save_state

    adam = _optax_state(config, np.array(moments.count, np.int32), moments.mean, moments.square)
    return save_state(folder, state.params, {"step": np.array(state.step, np.int32), "state": adam})


def _read_torch(folder: Path, config: Config, optimizer: bool) -> State:
    import torch

    from torchlm.checkpoint import restore_state

    def empty(prefix: str = "") -> dict[str, torch.Tensor]:
        return {f"{prefix}{name}": torch.from_numpy(array) for name, array in _empty(config, "torch").items()}

    params = empty()
    if not optimizer:
        restore_state(folder, params=params)
        return State("torch", 0, {name: tensor.numpy() for name, tensor in params.items()}, None)
    adam = {"step": torch.tensor(0), "count": torch.zeros(()), **empty("exp_avg."), **empty("exp_avg_sq.")}
    restore_state(folder, params=params, optimizer=adam)
    read, mean, square = (
        {name: tensors[prefix + name].numpy() for name in params}
        for prefix, tensors in (("", params), ("exp_avg.", adam), ("exp_avg_sq.", adam))
    )
    return State("torch", int(adam["step"]), read, Moments(int(adam["count"]), mean, square))


def _write_torch(folder: Path, state: State, moments: Moments, config: Config) -> Callable[[], None]:
    import torch

    from torchlm.checkpoint import save_state

    params = {name: numpy_to_torch(array) for name, array in state.params.items()}
    adam = {"step": torch.tensor(state.step), "count": torch.tensor(float(moments.count))}
    for prefix, arrays in (("exp_avg.", moments.mean), ("exp_avg_sq.", moments.square)):
        adam |= {prefix + name: numpy_to_torch(array) for name, array in arrays.items()}
    return save_state(folder, params, adam)
