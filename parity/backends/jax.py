"""The JAX backend of the ladder: the real engine and modules, with hooks while they are traced.

What a hook records is returned by the same compiled function that computes it: nothing is computed twice, and nothing
without `jax.jit`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxlm.decoding
import jaxlm.documents
import jaxlm.engine
import jaxlm.loss
import jaxlm.model
import jaxlm.slots
from jaxlm.decoding import Generator
from jaxlm.engine import TrainState
from jaxlm.fast.decoding import TRANSPOSED
from jaxlm.layers import stack_layers, unrolled, unstack_layers
from jaxlm.model import Decoder
from jaxlm.positions import NoPositions
from jaxlm.previous import NoPreviousTokens
from jaxlm.sharding import batch_sharding, replicated
from lmcore.config import Config, SampleConfig
from lmcore.model.quantize import Quantized, WeightFormat
from lmcore.serve.slots import Sampling
from parity.arrays import Arrays
from parity.backends import BACKENDS
from parity.backends.base import Step
from parity.convert.moments import Moments, fill_optax, read_optax
from parity.taps import Taps

__all__ = ["JaxTwin"]


class JaxTwin:
    """A jaxlm engine behind the interface of the ladder, `parity.backends.base.Twin`."""

    backend = BACKENDS["jax"]
    rounded_correction = "optax's 1 − β^t"

    def __init__(self, config: Config):
        self.config = config
        self.engine = jaxlm.engine.Engine(config)
        self._forward = jax.jit(lambda params, tokens: self.engine.model(params)(*self._read(tokens)))
        replicate, split = replicated(self.engine.mesh), batch_sharding(self.engine.mesh, axis=1)
        self._step = jax.jit(
            self._traced_step, in_shardings=(replicate, split, None, replicate, None), out_shardings=replicate
        )
        self._start = jax.jit(_traced_start, static_argnums=(0, 4))
        self._extend = jax.jit(_traced_extend, static_argnums=0)
        self._first: tuple[Any, Any] | None = None
        """A new state on the host, and its shardings."""
        self._activations: dict[tuple[int, ...], tuple[Callable[..., Any], list[str]]] = {}
        self._choose: dict[SampleConfig, Callable[..., jax.Array]] = {}

    def initial(self) -> Arrays:
        self.engine.init()
        return self.params()

    def load(self, params: Arrays, moments: Moments | None = None, step: int = 0) -> None:
        if self._first is None:
            self.engine.init()
            new = self.engine.state
            arrays = new.step, new.params, new.opt_state, new.frozen
            self._first = jax.tree.map(np.asarray, arrays), jax.tree.map(lambda array: array.sharding, arrays)
        (count, like, opt_state, frozen), shardings = self._first
        if moments is not None:
            count, opt_state = np.array(step, np.int32), fill_optax(opt_state, moments, self.config)
        trained, others = ({name: params[name] for name in names} for names in (like, frozen))
        state = count, trained, opt_state, others
        self.engine.state = TrainState(*jax.tree.map(_placed, state, self._first[0], shardings))

    def params(self) -> Arrays:
        return _host(self.engine.state.weights)

    def received(self, batch: np.ndarray) -> np.ndarray:
        batches = []

        def spy(state: Any, micro: jax.Array, lr: Any) -> tuple[Any, dict[str, Any]]:
            batches.append(np.asarray(micro))
            return state, {}

        with mock.patch.object(self.engine, "_train_step", spy):
            self.engine.train_step(batch, 0.0)
        return batches[0]

    def activations(self, tokens: np.ndarray) -> Arrays:
        if tokens.shape not in self._activations:
            names: list[str] = []

            def traced(params: Any, tokens: jax.Array) -> list[jax.Array]:
                decoder = self.engine.model(params)
                decoder.through = unrolled  # values inside of a scan cannot leave it
                with listening(decoder) as taps:
                    ids, documents = self._read(tokens)
                    decoder.hidden(ids, documents=documents)
                names.extend(taps.recorded)
                return list(taps.recorded.values())

            self._activations[tokens.shape] = jax.jit(traced), names
        compiled, names = self._activations[tokens.shape]
        values = compiled(self.engine.state.weights, jnp.asarray(tokens))
        return dict(zip(names, map(np.asarray, values), strict=True))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(self._forward(self.engine.state.weights, jnp.asarray(tokens)))

    def _read(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        return jaxlm.documents.read_tokens(self.config.data, tokens)

    def token_losses(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.asarray(jax.jit(jaxlm.loss.cross_entropy)(jnp.asarray(logits), jnp.asarray(targets)))

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        total, count = self.engine.eval_step(tokens, targets)
        return float(total), int(count)

    def step(self, batch: np.ndarray, lr: float, grads: Arrays | None = None) -> Step:
        micro = jnp.asarray(batch.reshape(self.config.train.grad_accum, -1, batch.shape[1]))
        params, stacked = self.engine.held.params, self.config.model.scan_layers
        replacement = jax.tree.map(jnp.zeros_like, params)
        if grads is not None:
            arrays = {name: jnp.asarray(value) for name, value in grads.items()}
            replacement = stack_layers(arrays) if stacked else arrays
        held, metrics, own = self._step(self.engine.held, micro, lr, replacement, grads is not None)
        self.engine.held = held
        state = self.engine.state
        moments = read_optax(state.opt_state, self.config).in_memory()
        own = unstack_layers(own, self.config.model.n_layers) if stacked else own
        own = {name: own[name] for name in state.params}
        return Step(float(metrics["loss"]), float(metrics["grad_norm"]), _host(own), _host(state.weights), moments)

    def _traced_step(
        self, state: Any, micro: jax.Array, lr: Any, replacement: dict[str, jax.Array], use_replacement: Any
    ) -> tuple[Any, dict[str, jax.Array], dict[str, jax.Array]]:
        """Run the engine's train step; record the gradients at its clip, and replace them if `use_replacement`."""
        clip, recorded = jaxlm.engine.clip_by_global_norm, {}

        def spy(grads: dict[str, jax.Array], max_norm: float) -> Any:
            recorded.update(grads)
            return clip({name: jnp.where(use_replacement, replacement[name], g) for name, g in grads.items()}, max_norm)

        with mock.patch.object(jaxlm.engine, "clip_by_global_norm", spy):
            state, metrics = jaxlm.engine.train_step(self.engine.model, state, micro, lr)
        return state, metrics, recorded

    def bias_correction(self, beta: float, count: int, dtype: np.dtype) -> float:
        return float(_bias_correction(beta, np.int32(count)).astype(dtype))

    def choose(self, logits: np.ndarray, uniforms: np.ndarray, options: SampleConfig | Sampling) -> np.ndarray:
        if isinstance(options, Sampling):
            return np.asarray(jax.jit(jaxlm.decoding.choose_tokens)(logits, uniforms, options))
        if options not in self._choose:
            self._choose[options] = jax.jit(partial(jaxlm.decoding.choose_tokens, options=options))
        return np.asarray(self._choose[options](jnp.asarray(logits), jnp.asarray(uniforms)))

    def slots(self, count: int, size: int) -> jaxlm.slots.Slots:
        return jaxlm.slots.Slots(self.engine, count, size)

    def int8_layers(self) -> dict[str, Quantized]:
        weights, end = self.engine.generator(SampleConfig(), "int8").weights(1), f".kernel{TRANSPOSED}"
        names = [name.removesuffix(end) for name in weights if name.endswith(end)]
        return {n: Quantized(*(np.asarray(weights[n + kind]) for kind in (end, ".scale"))) for n in names}

    def decode(
        self, tokens: np.ndarray, pads: np.ndarray, prompt: int, size: int, weights: WeightFormat = "full"
    ) -> np.ndarray:
        generator = self.engine.generator(SampleConfig(), weights)
        params = generator.weights(len(tokens))
        logits, cache = self._start(generator, params, jnp.asarray(tokens[:, :prompt]), jnp.asarray(pads), size)
        decoded = [logits]
        for position in range(prompt, tokens.shape[1]):
            logits, cache = self._extend(generator, params, jnp.asarray(tokens[:, position : position + 1]), cache)
            decoded.append(logits)
        return np.stack([np.asarray(logits) for logits in decoded], axis=1)


@jax.jit
def _bias_correction(beta: jax.Array, count: jax.Array) -> jax.Array:
    """Compute the 1 − β^t by which optax divides a moment, compiled as in a train step: in JAX's default float type."""
    return 1 - beta**count


def _traced_start(
    generator: Generator, weights: Any, tokens: jax.Array, pads: jax.Array, size: int
) -> tuple[jax.Array, Any]:
    decoder = generator.decoder(weights)
    return decoder.prefill(tokens, decoder.empty_cache(pads, size))


def _traced_extend(generator: Generator, weights: Any, token: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    return generator.decoder(weights).decode(token, cache)


@contextmanager
def listening(decoder: Decoder) -> Iterator[Taps]:
    """Record the inputs and outputs of the decoder's modules while it is traced."""
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(decoder)}
    names = {id(module): name for name, module in modules.items() if name}
    taps = Taps()
    with ExitStack() as stack:
        kinds = {type(module) for name, module in modules.items() if name}
        for kind in kinds - {nnx.List, NoPositions, NoPreviousTokens}:
            stack.enter_context(mock.patch.object(kind, "__call__", _recording(kind.__call__, names, taps)))
        attend = jaxlm.model.causal_attention
        stack.enter_context(mock.patch.object(jaxlm.model, "causal_attention", taps.attention(attend)))
        yield taps


def _recording(call: Callable[..., Any], names: dict[int, str], taps: Taps) -> Callable[..., Any]:
    def recording(module: nnx.Module, x: jax.Array, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module), "")
        taps.before(name, x)
        y = call(module, x, *args, **kwargs)
        taps.after(name, y)
        return y

    return recording


def _placed(value: np.ndarray, like: np.ndarray, sharding: Any) -> jax.Array:
    """Copy a host array to the devices, in the dtype of `like`."""
    return jax.device_put(jnp.array(value, like.dtype), sharding)


def _host(tree: Any) -> Arrays:
    return {name: np.asarray(value) for name, value in tree.items()}
