"""Run a JAX model: activations, outputs, loss, gradients, updates and the training curve."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from lmcore.errors import UserError
from parity.arrays import Arrays
from parity.ports.checking import check_loss
from parity.ports.dropout import jax_masks
from parity.ports.jax.models import COLLECTIONS, JaxModel, flat
from parity.ports.side import DType, Framework, Request, Side, Updated, carrier, projected, projected_size
from parity.ports.trees import Leaves, named_leaves, rebuilt
from parity.taps import Collected, collecting

__all__ = ["JaxPort", "jax_set_up"]

MOMENTS = ("mu", "nu", "trace", "sum_of_squares")
"""Fields of optax's states that are compared."""
NUMBERS = count()
"""One for each model that is run, and each way of running it."""


@contextmanager
def jax_set_up(request: Request) -> Iterator[None]:
    """Let JAX compute on the device asked for in full precision; within `parity.settings.jax_settings`.

    Raises:
        UserError: there is no such device.
    """
    jax.config.update("jax_enable_x64", request.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        device = jax.devices(request.device)[0]
    except RuntimeError as error:
        kinds = ", ".join(dict.fromkeys(each.platform for each in jax.devices()))
        raise UserError(f"device: found no {request.device} for JAX, expected one of {kinds}") from error
    with jax.default_device(device):
        yield


def _in_its_width(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a port that computes with 64 bits where the port's own type has them, and only there."""

    @wraps(method)
    def run(port: "JaxPort", *args: Any) -> Any:
        with jax.enable_x64(port.request.dtype == "float64"):
            return method(port, *args)

    return run


class JaxPort:
    """A JAX model as a side of a comparison: a `parity.ports.side.Port`."""

    framework: Framework = "jax"
    optimizer = ""
    frozen: tuple[str, ...] = ()

    def __init__(self, model: JaxModel, request: Request):
        self.model, self.request = model, request
        self.weights = {name: self._typed(value) for name, value in model.arrays.items()}
        self.trained = tuple(name for name in model.trained if self.weights[name].dtype.kind in "fc")
        self._real: Arrays = {}
        """Real inputs, which get a gradient; a Python number gets none."""

        def typed(name: str, array: np.ndarray) -> np.ndarray:
            typed = self._typed(array)
            if typed.dtype.kind == "f":
                self._real[name] = typed
            return typed

        self._args = rebuilt(request.args, typed)
        self._program: Callable[..., Any] | None = None
        self._collected = Collected()
        self._by_callback = False
        self._number = next(NUMBERS)

    def in_dtype(self, dtype: DType) -> "JaxPort":
        """Return the same model, to run in another type."""
        return JaxPort(self.model, replace(self.request, dtype=dtype))

    def output_names(self) -> list[str]:
        """Return the names of the model's outputs, without computing them."""
        return list(named_leaves(jax.eval_shape(lambda: self._call(self._arrays(self.weights), self._inputs({}))[0])))

    @_in_its_width
    def run(self, weights: Arrays) -> Side:
        """Run the model and its gradients, compiled once."""
        values, activations = self._arrays(weights), {}
        trained = {name: values[name] for name in self.trained}
        fixed = {name: value for name, value in values.items() if name not in trained}
        real = {name: self._array(value) for name, value in self._real.items()}
        try:
            (loss, (outputs, tapped, state)), grads = self._compiled()(trained, fixed, real)
        except jax.errors.UnexpectedTracerError:  # a tap within scan, vmap or checkpoint, whose values cannot leave it
            if self._by_callback:
                raise
            self._by_callback, self._program, self._number = True, None, next(NUMBERS)
            return self.run(weights)
        if self._by_callback:
            activations = self._called_back(values)
        else:
            activations = dict(zip(self._collected.values, map(_numpy, tapped), strict=True))
        arrays = {name: _numpy(value) for name, value in outputs.items()}
        return Side(
            activations=activations,
            modules={name: self._under(name) for name in activations if name in self._collected.modules},
            outputs=arrays,
            loss_size=0.0 if self.request.loss else projected_size(arrays),
            loss=float(loss),
            # The gradient of a complex parameter in jax is the conjugate of torch's.
            grads={name: np.conj(_numpy(value)) for name, value in grads[0].items()},
            input_grads={name: _numpy(value) for name, value in grads[1].items()},
            state={name: _numpy(value) for name, value in state.items()},
        )

    def narrow(self) -> dict[str, str]:
        """Return the operations whose results are narrower than asked for: description -> type."""
        from parity.ports.jax.narrow import narrow_operations

        arrays = self._arrays(self.weights)
        return narrow_operations(lambda arrays: self._call(arrays, self._inputs({}))[0], arrays, self.request.dtype)

    @_in_its_width
    def updates(self, weights: Arrays, grads: Arrays, factors: Sequence[float]) -> list[Updated]:
        """Return what the optimizer makes of the same gradients, times one factor after the other."""
        import optax

        transformation = self._transformation()
        values = self._arrays(weights)
        now = self._tree(values)
        zeros = {name: jnp.zeros_like(value) for name, value in values.items()}
        slopes = self._tree(zeros | {name: self._array(np.conj(value)) for name, value in grads.items()})
        state, found = self._wide(transformation.init(now)), []
        for factor in factors:
            change, state = transformation.update(jax.tree.map(lambda g, f=factor: f * g, slopes), state, now)
            now = optax.apply_updates(now, change)
            moments: dict[str, Arrays] = {}
            for field, tree in _moments(state):
                moments.setdefault(field, {}).update({name: _numpy(value) for name, value in self._flat(tree).items()})
            found.append(Updated({name: _numpy(value) for name, value in self._flat(now).items()}, moments))
        return found

    def curve(self, weights: Arrays) -> np.ndarray:
        """Return the loss of each step of training."""
        import optax

        transformation = self._transformation()

        @jax.jit
        def step(trained: Any, fixed: Any, optimizer: Any, args: Any) -> tuple[Any, Any, Any, Any]:
            def loss(trained: Any) -> tuple[Any, Any]:
                outputs, state = self._call(trained | fixed, args)
                return self._loss(outputs)[1], state

            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(trained)
            now = self._tree(trained | fixed)
            zeros = {name: jnp.zeros_like(v) for name, v in (trained | fixed).items()}
            change, optimizer = transformation.update(self._tree(zeros | grads), optimizer, now)
            after = self._flat(optax.apply_updates(now, change))
            fixed = fixed | {name: state[name] for name in fixed if name in state}
            return {name: after[name] for name in trained}, fixed, optimizer, value

        values = self._arrays(weights)
        trained = {name: values[name] for name in self.trained}
        fixed = {name: value for name, value in values.items() if name not in trained}
        optimizer, losses = self._wide(transformation.init(self._tree(values))), []
        for args in self.request.batches:
            args = rebuilt(args, lambda name, array: self._array(self._typed(array)))
            trained, fixed, optimizer, loss = step(trained, fixed, optimizer, args)
            losses.append(float(loss))
        return np.array(losses)

    def _compiled(self) -> Callable[..., Any]:
        if self._program is None:

            def program(trained: Any, fixed: Any, real: Mapping[str, jax.Array]) -> tuple[Any, Any]:
                args = self._inputs(real)
                with collecting() as collected:
                    outputs, state = self._call(trained | fixed, args)
                if not self._by_callback:
                    self._collected = collected
                chosen, loss = self._loss(outputs)
                return loss, (chosen, [] if self._by_callback else list(collected.values.values()), state)

            self._program = jax.jit(jax.value_and_grad(program, argnums=(0, 2), has_aux=True))
        return self._program

    def _called_back(self, arrays: Mapping[str, jax.Array]) -> Arrays:
        """Return the activations, each sent out by a callback where it is computed, in the order of the calls."""
        self._collected, self._number = Collected(), next(NUMBERS)

        @jax.jit
        def forward(arrays: Any) -> Any:
            with collecting(_Sending(self._collected)):
                return self._call(arrays, self._inputs({}))[0]

        jax.block_until_ready(forward(arrays))
        jax.effects_barrier()
        return {name: _numpy(value) for name, value in self._collected.values.items()}

    def _inputs(self, real: Mapping[str, jax.Array]) -> tuple[Any, ...]:
        """Return the arguments as JAX arrays, the real ones from `real` where they are in it."""
        return rebuilt(self._args, lambda name, array: real.get(name, self._array(array)))

    def _call(self, arrays: Mapping[str, Any], args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        with ExitStack() as stack:
            # What is traced here has its own masks and callbacks, and must not be found in the caches of the user's
            # own functions, nor theirs here: metadata is part of the keys of those caches.
            stack.enter_context(set_xla_metadata(parity=str(self._number)))
            if self.request.train:
                stack.enter_context(jax_masks(self.request.masks))
            return self.model.call(arrays, args)

    def _loss(self, outputs: Any) -> tuple[Leaves, Any]:
        """Return the outputs that are compared, by their common names, and the loss."""
        chosen = self.request.chosen(named_leaves(outputs))
        loss = self.request.loss(outputs) if self.request.loss else projected(chosen, jnp.asarray)
        check_loss(loss, "JAX", self.request.loss is not None)
        return chosen, loss

    def _typed(self, array: Any) -> np.ndarray:
        """Convert real values to the type asked for, and complex ones to its complex type, as NumPy holds them."""
        return _numpy(self._array(array))

    def _array(self, array: Any) -> jax.Array:
        array = array if isinstance(array, np.ndarray) else jnp.asarray(array)  # NumPy converts without a program
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            array = array.astype(np.result_type(carrier(self.request.dtype), np.complex64))
        elif jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(jnp.dtype(self.request.dtype))
        return jnp.asarray(array)

    def _arrays(self, weights: Arrays) -> dict[str, jax.Array]:
        return {name: self._array(value) for name, value in (self.weights | weights).items()}

    def _tree(self, arrays: Mapping[str, Any]) -> Any:
        """Return the parameters as the tree that an optimizer takes."""
        return self.model.tree({name: arrays[name] for name in self.model.trained})

    def _flat(self, tree: Any) -> dict[str, Any]:
        """Return the leaves of an optimizer's tree by the names of the parameters."""
        return {self.model.prefix + name: leaf for name, leaf in flat(tree).items()}

    def _wide(self, state: Any) -> Any:
        """Return an optimizer's state whose numbers are as wide as is compared in.

        JAX divides a count of 32 bits in float32, so that a schedule would be no more exact than that; and optax keeps
        some sums in float32.
        """
        if self.request.dtype != "float64":
            return state

        def wide(leaf: Any) -> Any:
            kind = {"float32": jnp.float64, "int32": jnp.int64}.get(str(getattr(leaf, "dtype", "")))
            return leaf if kind is None else leaf.astype(kind)

        return jax.tree.map(wide, state)

    def _transformation(self) -> Any:
        transformation = self.request.optimizer
        if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
            raise UserError(f"optimizers: found {transformation!r} for JAX, expected an optax transformation")
        return transformation

    def _under(self, name: str) -> tuple[str, ...]:
        """Return the parameters and statistics of a submodule, by the name of its activation."""
        prefix = name.partition(" (")[0] + "."
        return tuple(array for array in self.weights if _without_collection(array).startswith(prefix))


class _Sending(Collected):
    """Sends each value to a collection while the program runs, also out of scan, vmap and checkpoint."""

    def __init__(self, target: Collected):
        super().__init__()
        self.target = target

    def add(self, name: str, value: Any, *, module: bool = False) -> None:
        """Send a value; under `vmap`, all of its examples at once, along the first axis."""

        @jax.custom_batching.custom_vmap
        def send(value: jax.Array) -> jax.Array:
            jax.debug.callback(
                lambda array: self.target.add(name, np.asarray(array), module=module), value, ordered=True
            )
            return value

        @send.def_vmap
        def _(size: int, batched: list[bool], value: jax.Array) -> tuple[jax.Array, bool]:
            return send(value), batched[0]

        send(jnp.asarray(value))


def _moments(state: Any) -> list[tuple[str, Any]]:
    """Return the moments in an optax state, which is a tree of named tuples."""
    found = []
    if hasattr(state, "_fields"):
        found = [(field, getattr(state, field)) for field in state._fields if field in MOMENTS]
    if isinstance(state, dict):
        found += [moment for part in state.values() for moment in _moments(part)]
    if isinstance(state, tuple | list):
        found += [moment for part in state for moment in _moments(part)]
    return found


def _numpy(array: Any) -> np.ndarray:
    """Return an array as NumPy's; real types of 16 bits become float32, which holds their values exactly."""
    array = np.asarray(array)
    return (
        array.astype(np.float32) if array.dtype.itemsize == 2 and jnp.issubdtype(array.dtype, jnp.floating) else array
    )


def _without_collection(name: str) -> str:
    return next((name.removeprefix(each) for each in COLLECTIONS if name.startswith(each)), name)
