"""The train step, and the `Engine` through which the one training loop in `lmcore.run.trainer` drives it.

Shape letters as in `jaxlm.model`; A accumulation steps, T1 = T + 1 tokens for T targets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxlm.checkpoint import restore_state, save_state
from jaxlm.decoding import Generator
from jaxlm.functional import Model, Params
from jaxlm.layers import stack_layers, unstack_layers
from jaxlm.loss import IGNORED, loss_sum
from jaxlm.optim import apply_updates, clip_by_global_norm, make_optimizer, over_layers
from jaxlm.processes import joined
from jaxlm.sharding import batch_sharding, data_mesh, local, placed, replicated, set_up_jax
from lmcore.config import Config, SampleConfig, TrainConfig
from lmcore.model.flops import peak_flops
from lmcore.model.memory import check_memory
from lmcore.run.processes import ALONE, Processes

__all__ = ["Engine", "TrainState", "eval_step", "train_step"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a train step changes."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any


def train_step(
    model: Model, state: TrainState, batch: Int[Array, "A B T1"], lr: Float[Array, ""]
) -> tuple[TrainState, dict[str, Float[Array, ""] | Bool[Array, ""]]]:
    """Update the parameters once from A accumulated micro-batches.

    Losses and gradients are summed over the micro-batches, and divided once by the number of all targets.

    Args:
        model: the decoder without its parameters.
        state: parameters and optimizer state, which may be stacked (see `jaxlm.layers`).
        batch: token ids; the targets are the same ids, one position later.
        lr: learning rate of this update.
    """
    config = model.config

    def micro_loss(params: Params, tokens: Int[Array, "B T1"], index: Int[Array, ""]) -> Float[Array, ""]:
        key = None
        if config.model.dropout > 0:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.train.seed), state.step), index)
        return loss_sum(model(params), tokens[:, :-1], tokens[:, 1:], key)

    def accumulate(total: tuple[Array, Params], micro: tuple[Array, Array]) -> tuple[tuple[Array, Params], None]:
        added = jax.value_and_grad(micro_loss)(state.params, *micro)
        return jax.tree.map(jnp.add, total, added), None

    parts = len(batch)
    if parts == 1:
        loss, grads = jax.value_and_grad(micro_loss)(state.params, batch[0], jnp.int32(0))
    else:
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        start = (jnp.zeros((), zeros["embed_tokens.weight"].dtype), zeros)
        (loss, grads), _ = jax.lax.scan(accumulate, start, (batch, jnp.arange(parts)))
    targets = batch[:, :, 1:].size
    grads, grad_norm = clip_by_global_norm(jax.tree.map(lambda g: g / targets, grads), config.optim.clip)
    optimizer = over_layers(make_optimizer(config.optim))
    directions, opt_state = optimizer.update(grads, state.opt_state, state.params, lr=lr)
    params = apply_updates(state.params, directions, lr)
    metrics = {"loss": loss / targets, "grad_norm": grad_norm}
    if config.optim.nonfinite == "skip":
        finite = update_is_finite(loss, grad_norm)
        keep = partial(jnp.where, finite)
        params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, state.opt_state))
        metrics["skipped"] = ~finite
    return TrainState(state.step + 1, params, opt_state), metrics


def update_is_finite(loss: Float[Array, ""], grad_norm: Float[Array, ""]) -> Bool[Array, ""]:
    """Return whether neither is infinite or NaN; the gradient norm stands for all gradients."""
    return jnp.isfinite(loss) & jnp.isfinite(grad_norm)


def eval_step(
    model: Model, params: Params, tokens: Int[Array, "B T"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Return the summed token loss, and the number of targets that count.

    Args:
        model: the decoder without its parameters.
        params: its parameters, which may be stacked (see `jaxlm.layers`).
        tokens: token ids.
        targets: the id that follows each token, or IGNORED.
    """
    return loss_sum(model(params), tokens, targets), jnp.sum(targets != IGNORED)


@jax.jit
def _all_finite(tree: Any) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


class Engine:
    """A jaxlm model in training: parameters, optimizer state, compiled steps. See `lmcore.run.engine.Engine`."""

    framework = "jax"
    package = "jaxlm"

    def __init__(self, config: Config, processes: Processes = ALONE):
        set_up_jax(config.train)
        self.config, self.processes = config, processes
        self.mesh = data_mesh(config.train)
        self._check_memory(training=False)
        self.model = Model(config)
        replicate, split = replicated(self.mesh), batch_sharding(self.mesh, axis=1)
        self._train_step = jax.jit(
            partial(train_step, self.model),
            donate_argnums=0,
            in_shardings=(replicate, split, None),
            out_shardings=replicate,
        )
        self._eval_step = jax.jit(partial(eval_step, self.model))
        self._generators: dict[SampleConfig, Generator] = {}
        self._running: Any = None
        self.held: TrainState
        """The state in the form that the compiled steps take: stacked over the layers with `model.scan_layers`."""

    joined = staticmethod(joined)

    @staticmethod
    def check_machine(train: TrainConfig) -> None:
        """Raise UserError unless this machine has the device and precision that `train` asks for."""
        set_up_jax(train)
        data_mesh(train)

    @property
    def state(self) -> TrainState:
        """Everything that a train step changes, unstacked: by the parameters' own names."""
        held = local(self.held)
        return unstack_layers(held, self.config.model.n_layers) if self.config.model.scan_layers else held

    @state.setter
    def state(self, state: TrainState) -> None:
        self.held = stack_layers(state) if self.config.model.scan_layers else state

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters, each scalar counted."""
        return self.model.parameter_count

    @property
    def device_name(self) -> str:
        """Number and name of the devices in use, for people to read."""
        devices = self.mesh.devices.flat
        return f"{len(devices)} × {devices[0].device_kind}"

    @property
    def peak_flops(self) -> float | None:
        """Dense 16-bit peak of all devices in use, in FLOP/s; None where it is unknown."""
        peak = peak_flops(self.mesh.devices.flat[0].device_kind)
        return peak and peak * self.mesh.size

    @property
    def shard(self) -> tuple[int, int]:
        """(index, count): this process computes the index-th of `count` equal, contiguous parts of each micro-batch."""
        return self.processes.rank, self.processes.count

    def init(self) -> None:
        """Start from the shared NumPy initialization."""
        self._check_memory(training=True)
        params = jax.device_put(self.model.initial_params(), replicated(self.mesh))
        opt_state = jax.jit(make_optimizer(self.config.optim).init, out_shardings=replicated(self.mesh))(params)
        self.state = TrainState(jax.device_put(jnp.int32(0), replicated(self.mesh)), params, opt_state)

    def _check_memory(self, *, training: bool) -> None:
        if self.mesh.devices.flat[0].platform == "cpu":
            check_memory(self.config, training=training)

    def train_step(self, batch: Int32[np.ndarray, "B T1"], lr: float) -> dict[str, Float[Array, ""] | Bool[Array, ""]]:
        """Update the parameters once; return `loss` and `grad_norm`, and `skipped` where updates may be skipped."""
        micro = batch.reshape(self.config.train.grad_accum, -1, batch.shape[1])
        tokens = placed(micro, batch_sharding(self.mesh, 1))
        self._wait_on_cpu()
        self.held, self._running = self._train_step(self.held, tokens, lr)
        return self._running

    def eval_step(
        self, tokens: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B T"]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Return the summed token loss and the number of targets that count, without waiting for the device."""
        missing = -len(tokens) % (self.mesh.size // self.processes.count)
        if missing and self.processes.count > 1:
            tokens, targets = (np.pad(a, ((0, missing), (0, 0)), constant_values=IGNORED) for a in (tokens, targets))
            tokens = np.maximum(tokens, 0)
        even = len(tokens) * self.processes.count % self.mesh.size == 0
        sharding = batch_sharding(self.mesh) if even else replicated(self.mesh)
        self._wait_on_cpu()
        self._running = self._eval_step(self.held.params, placed(tokens, sharding), placed(targets, sharding))
        return self._running

    def _wait_on_cpu(self) -> None:
        """Wait for the previous program where several CPU devices share one pool of threads.

        With two programs under way, both can end up waiting in a collective for a thread that the other holds: XLA then
        aborts the process.
        """
        if self.mesh.size > 1 and self.mesh.devices.flat[0].platform == "cpu":
            jax.block_until_ready(self._running)

    def is_finite(self) -> bool:
        """Return whether all parameters and optimizer values are finite; waits for the device."""
        self._wait_on_cpu()
        self._running = _all_finite((self.held.params, self.held.opt_state))
        return bool(self._running)

    def save(self, folder: Path) -> Callable[[], None]:
        """Copy the state and write it in the background; the returned function waits for that, then reads it back."""
        if self.processes.rank > 0:
            return lambda: None
        state = self.state
        if self.processes.count > 1:  # Orbax takes no JAX array that one of several processes has to itself
            state = jax.tree.map(np.asarray, state)
        return save_state(folder, state.params, {"step": state.step, "state": state.opt_state})

    def restore(self, folder: Path, optimizer: bool = True) -> None:
        """Load the state that `save` wrote; without `optimizer`, the parameters alone, to evaluate or generate."""
        replicate = replicated(self.mesh)
        place = partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicate))
        params = place(self.model.shapes)
        if not optimizer:
            self.state = TrainState(jnp.int32(0), restore_state(folder, params=params)["params"], None)
            return
        opt_state = place(jax.eval_shape(make_optimizer(self.config.optim).init, self.model.shapes))
        step = place(jax.ShapeDtypeStruct((), jnp.int32))
        read = restore_state(folder, params=params, optimizer={"step": step, "state": opt_state})
        self.state = TrainState(read["optimizer"]["step"], read["params"], read["optimizer"]["state"])

    def generator(self, options: SampleConfig) -> Generator:
        """Return a generator with the current parameters."""
        if options not in self._generators:
            own = [device for device in self.mesh.devices.flat if device.process_index == jax.process_index()]
            mesh = self.mesh if self.processes.count == 1 else Mesh(np.array(own), self.mesh.axis_names)
            self._generators[options] = Generator(self.model, options, mesh)
        generator = self._generators[options]
        generator.load(self.state.params)
        return generator
