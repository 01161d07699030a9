"""The train step, and the `Engine` through which the one training loop in `lmcore.run.trainer` drives it.

Shape letters as in `jaxlm.model`; A accumulation steps, T1 = T + 1 tokens for T targets.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxlm.checkpoint import restore_state, save_state
from jaxlm.decoding import Generator
from jaxlm.device import set_up_jax
from jaxlm.documents import read_batch, read_tokens, target_count
from jaxlm.functional import Model, Params
from jaxlm.layers import stack_layers, unstack_layers
from jaxlm.lora import merge
from jaxlm.loss import IGNORED, cross_entropy, loss_sum
from jaxlm.optim import apply_updates, clip_by_global_norm, make_optimizer, over_layers
from jaxlm.processes import joined
from jaxlm.sharding import (
    batch_sharding,
    gathered,
    local,
    make_mesh,
    own_mesh,
    placed,
    replicated,
    shape_of,
    state_shardings,
)
from lmcore.config import Config, SampleConfig
from lmcore.model.flops import peak_flops
from lmcore.model.init import Weights
from lmcore.model.lora import is_adapter
from lmcore.model.memory import check_memory
from lmcore.model.quantize import WeightFormat, check_format
from lmcore.run.processes import ALONE, Processes

__all__ = [
    "Engine",
    "TrainState",
    "eval_step",
    "jit_train_step",
    "lower_train_step",
    "score",
    "state_shapes",
    "train_step",
]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a train step changes: arrays, or in their places their shapes or shardings."""

    step: Any
    """Number of updates done, an integer."""
    params: dict[str, Any]
    """Those that are trained."""
    opt_state: Any
    frozen: dict[str, Any] = field(default_factory=dict)
    """Parameters that are not trained: all but the adapters' with `model.lora`."""

    @property
    def weights(self) -> dict[str, Any]:
        """All parameters of the model."""
        return self.frozen | self.params


def train_step(
    model: Model, state: TrainState, batch: Int[Array, "A B T1"], lr: Float[Array, ""]
) -> tuple[TrainState, dict[str, Float[Array, ""] | Bool[Array, ""]]]:
    """Update the parameters once from A accumulated micro-batches.

    Losses and gradients are summed over the micro-batches, and divided once by the number of all targets that count.

    Args:
        model: the decoder without its parameters.
        state: parameters and optimizer state, which may be stacked (see `jaxlm.layers`).
        batch: token ids, with marks where the data has them; the targets are the same ids, one position later.
        lr: learning rate of this update.
    """
    config = model.config

    def micro_loss(params: Params, tokens: Int[Array, "B T1"], index: Int[Array, ""]) -> Float[Array, ""]:
        key = None
        if config.model.has_dropout:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.train.seed), state.step), index)
        inputs, targets, documents = read_batch(config.data, tokens)
        return loss_sum(model(state.frozen | params), inputs, targets, key, documents)

    def accumulate(total: tuple[Array, Params], micro: tuple[Array, Array]) -> tuple[tuple[Array, Params], None]:
        added = jax.value_and_grad(micro_loss)(state.params, *micro)
        return jax.tree.map(jnp.add, total, added), None

    parts = len(batch)
    if parts == 1:
        loss, grads = jax.value_and_grad(micro_loss)(state.params, batch[0], jnp.int32(0))
    else:
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        start = (jnp.zeros((), jax.tree.leaves(zeros)[0].dtype), zeros)
        (loss, grads), _ = jax.lax.scan(accumulate, start, (batch, jnp.arange(parts)))
    count = target_count(config.data, batch)
    grads, grad_norm = clip_by_global_norm(jax.tree.map(lambda g: g / count, grads), config.optim.clip)
    optimizer = over_layers(make_optimizer(config.optim))
    with jax.named_scope("optimizer"):  # in the names of its operations, for profiles and `parity.audit`
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params, lr=lr)
    params = apply_updates(state.params, directions, lr)
    metrics = {"loss": loss / count, "grad_norm": grad_norm}
    if config.optim.nonfinite == "skip":
        finite = update_is_finite(loss, grad_norm)
        keep = partial(jnp.where, finite)
        params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, state.opt_state))
        metrics["skipped"] = ~finite
    return TrainState(state.step + 1, params, opt_state, state.frozen), metrics


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
        tokens: token ids, with marks where the data has them.
        targets: the id that follows each token, or IGNORED.
    """
    tokens, documents = read_tokens(model.config.data, tokens)
    return loss_sum(model(params), tokens, targets, None, documents), jnp.sum(targets != IGNORED)


def score(
    model: Model, params: Params, tokens: Int[Array, "B T"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Return the log-probability of each target, and whether it is the most likely token.

    Args:
        model: the decoder without its parameters.
        params: its parameters, which may be stacked (see `jaxlm.layers`).
        tokens: token ids.
        targets: the id that follows each token, or IGNORED, which gives 0.
    """
    decoder = model(params)
    logits = decoder.logits(decoder.hidden(tokens))
    return -cross_entropy(logits, targets), jnp.argmax(logits, axis=-1) == targets


@jax.jit
def _all_finite(tree: Any) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def state_shapes(model: Model) -> TrainState:
    """Return the shapes of a train state, unstacked."""
    init = make_optimizer(model.config.optim).init
    return jax.eval_shape(lambda p, frozen: TrainState(jnp.int32(0), p, init(p), frozen), model.trained, model.frozen)


def jit_train_step(model: Model, mesh: Mesh | AbstractMesh) -> tuple[Any, TrainState]:
    """Return the train step on a mesh, jitted, and the shapes of the state that it takes, with their shardings.

    Args:
        model: the decoder without its parameters.
        mesh: the devices; to lower the step, it needs none that exists.
    """
    shapes = state_shapes(model)
    if model.config.model.scan_layers:
        shapes = jax.eval_shape(stack_layers, shapes)
    held = state_shardings(mesh, shapes, model.shapes)
    step = jax.jit(
        partial(train_step, model),
        donate_argnums=0,
        in_shardings=(held, batch_sharding(mesh, axis=1), None),
        out_shardings=(held, replicated(mesh)),
    )
    return step, jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, held)


def lower_train_step(config: Config, mesh: Mesh) -> Any:
    """Return the train step that `Engine` would compile on a mesh, lowered from shapes: nothing is allocated.

    Args:
        config: with `model.vocab_size` set.
        mesh: the devices, which may be those of a topology that is not here.
    """
    step, state = jit_train_step(Model(config), mesh)
    train = config.train
    batch = (train.grad_accum, train.batch_size // train.grad_accum, train.seq_len + 1)
    with jax.set_mesh(mesh):
        return step.lower(state, jax.ShapeDtypeStruct(batch, jnp.int32), 0.0)


def _unchanged(state: TrainState) -> TrainState:
    return state


class Engine:
    """A jaxlm model in training: parameters, optimizer state, compiled steps. See `lmcore.run.engine.Engine`."""

    framework = "jax"
    package = "jaxlm"

    def __init__(self, config: Config, processes: Processes = ALONE):
        set_up_jax(config, processes.count)
        self.config, self.processes = config, processes
        self.mesh = make_mesh(config)
        self._check_memory(training=False)
        self.model = Model(config)
        self._stack = stack_layers if config.model.scan_layers else _unchanged
        self._unstack = partial(unstack_layers, n_layers=config.model.n_layers)
        self._train_step, _ = jit_train_step(self.model, self.mesh)
        self._eval_step = jax.jit(partial(eval_step, self.model))
        self._score = jax.jit(partial(score, self.model))
        self._generators: dict[tuple[SampleConfig, WeightFormat], Generator] = {}
        self._running: Any = None
        self._base: Params = {}
        """Weights from `load_base` that no state has taken yet: a step donates the memory of its own."""
        self.held: TrainState
        """The state in the form that the compiled steps take: stacked over the layers with `model.scan_layers`."""

    joined = staticmethod(joined)

    @staticmethod
    def check_machine(config: Config, processes: Processes = ALONE) -> None:
        """Raise UserError unless this machine has the device and precision that the config asks for."""
        set_up_jax(config, processes.count)
        make_mesh(config)

    @property
    def state(self) -> TrainState:
        """Everything that a train step changes, unstacked: by the parameters' own names."""
        held = self.held if self._sharded else local(self.held)
        return self._changed(self._unstack, held) if self.config.model.scan_layers else held

    @state.setter
    def state(self, state: TrainState) -> None:
        self.held = self._changed(self._stack, state)

    def _changed(self, change: Callable[[TrainState], TrainState], state: TrainState) -> TrainState:
        """Return a state with its layers stacked or unstacked, sharded as its parameters are."""
        if not self._sharded or change is _unchanged:
            return change(state)
        return jax.jit(change, out_shardings=self._shardings(jax.eval_shape(change, state)))(state)

    def _shardings(self, state: Any) -> Any:
        """Return the sharding of each array of a state, or of a part of it."""
        return state_shardings(self.mesh, state, self.model.shapes)

    @property
    def _sharded(self) -> bool:
        return shape_of(self.mesh).sharded

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters, each scalar counted."""
        return self.model.parameter_count

    @property
    def device_name(self) -> str:
        """Number and name of the devices in use, for people to read."""
        devices = self.mesh.devices.flat
        mesh = f" ({shape_of(self.mesh)})" if self._sharded else ""
        return f"{len(devices)} × {devices[0].device_kind}{mesh}"

    @property
    def peak_flops(self) -> float | None:
        """Dense 16-bit peak of all devices in use, in FLOP/s; None where it is unknown."""
        peak = peak_flops(self.mesh.devices.flat[0].device_kind)
        return peak and peak * self.mesh.size

    @property
    def shard(self) -> tuple[int, int]:
        """(index, count): this process computes the index-th of `count` equal, contiguous parts of each micro-batch."""
        own, tensor = self.mesh.size // self.processes.count, self.mesh.shape["tensor"]
        each = max(1, own // tensor)  # parts of a micro-batch for each process; those of one part have the same rows
        return self.processes.rank * own // tensor // each, shape_of(self.mesh).batch // each

    def init(self, weights: Weights | None = None) -> None:
        """Start from these weights, or from the shared NumPy initialization; those of `load_base` stay."""
        self._check_memory(training=True)
        shardings = self._shardings(state_shapes(self.model))
        values, self._base = self._base, {}
        for name, leaf in self.model.shapes.items():  # one at a time: each device keeps its part alone
            if name not in values:
                weight = self.model.initial_weight(name, weights)
                values[name] = jax.make_array_from_callback(leaf.shape, shardings.weights[name], weight.__getitem__)
        params, frozen = ({name: values[name] for name in names} for names in (self.model.trained, self.model.frozen))
        opt_state = jax.jit(make_optimizer(self.config.optim).init, out_shardings=shardings.opt_state)(params)
        step = jax.make_array_from_callback((), shardings.step, np.zeros((), np.int32).__getitem__)
        self.state = TrainState(step, params, opt_state, frozen)

    def load_base(self, folder: Path) -> None:
        """Load all weights but the adapters' from a saved state that has no adapters, before `init` or `restore`."""
        weights = self._abstract(state_shapes(self.model)).weights
        base = {name: leaf for name, leaf in weights.items() if not is_adapter(name)}
        self._base = restore_state(folder, params=base)["params"]

    def _check_memory(self, *, training: bool) -> None:
        if self.mesh.devices.flat[0].platform == "cpu":
            check_memory(self.config, training=training)

    def train_step(self, batch: Int32[np.ndarray, "B T1"], lr: float) -> dict[str, Float[Array, ""] | Bool[Array, ""]]:
        """Update the parameters once; return `loss` and `grad_norm`, and `skipped` where updates may be skipped."""
        micro = batch.reshape(self.config.train.grad_accum, -1, batch.shape[1])
        tokens = placed(micro, batch_sharding(self.mesh, 1))
        self._wait_on_cpu()
        with jax.set_mesh(self.mesh):
            self.held, self._running = self._train_step(self.held, tokens, lr)
        return self._running

    def eval_step(
        self, tokens: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B T"]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Return the summed token loss and the number of targets that count, without waiting for the device."""
        self._wait_on_cpu()
        with jax.set_mesh(self.mesh):
            self._running = self._eval_step(self.held.weights, *self._on_devices(tokens, targets))
        return self._running

    def score(
        self, tokens: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B T"]
    ) -> tuple[Float[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Return the log-probability of each target, 0 for −1, and whether it is the most likely token; one process."""
        with jax.set_mesh(self.mesh):
            scores = self._score(self.held.weights, *self._on_devices(tokens, targets))
        logprobs, likeliest = (np.asarray(values)[: len(tokens)] for values in scores)
        return logprobs, likeliest

    def _on_devices(self, tokens: np.ndarray, targets: np.ndarray) -> list[Array]:
        """Split sequences over the devices, with further ones whose targets are ignored where there are too few."""
        missing = -len(tokens) % (shape_of(self.mesh).batch // self.shard[1])
        if missing:
            tokens, targets = (np.pad(a, ((0, missing), (0, 0)), constant_values=IGNORED) for a in (tokens, targets))
            tokens = np.maximum(tokens, 0)
        return [placed(array, batch_sharding(self.mesh)) for array in (tokens, targets)]

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
        together = self._sharded and self.processes.count > 1
        if self.processes.rank > 0 and not together:
            return lambda: None
        state = self.state
        if self.processes.count > 1 and not together:  # Orbax takes no JAX array that one of several processes owns
            state = jax.tree.map(np.asarray, state)
        return save_state(folder, state.params, {"step": state.step, "state": state.opt_state}, together)

    def restore(self, folder: Path, optimizer: bool = True) -> None:
        """Load the state that `save` wrote; without `optimizer`, the parameters alone, to evaluate or generate."""
        shapes = self._abstract(state_shapes(self.model))
        weights, self._base = self._base or (self.state.frozen if hasattr(self, "held") else {}), {}
        frozen = {name: weights[name] for name in self.model.frozen}
        if not optimizer:
            self.state = TrainState(jnp.int32(0), restore_state(folder, params=shapes.params)["params"], None, frozen)
            return
        items = {"params": shapes.params, "optimizer": {"step": shapes.step, "state": shapes.opt_state}}
        read = restore_state(folder, **items)
        self.state = TrainState(read["optimizer"]["step"], read["params"], read["optimizer"]["state"], frozen)

    def _abstract(self, shapes: TrainState) -> TrainState:
        """Return the shapes of a state with their shardings."""
        return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, self._shardings(shapes))

    def generator(self, options: SampleConfig, weights: WeightFormat = "full") -> Generator:
        """Return a generator with the current parameters."""
        check_format(weights, self.config.train.precision, self._sharded)
        if (options, weights) not in self._generators:
            self._generators[options, weights] = Generator(self.model, options, own_mesh(self.mesh), weights)
        generator, params = self._generators[options, weights], self.state.weights
        params = params if weights == "int8" else merge(params, self.config.model)
        generator.load(local(gathered(params, self.mesh)) if self._sharded else params)
        return generator
