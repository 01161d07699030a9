"""The decoder as a pure function of its parameters, a flat dict from dotted names to arrays.

Flax NNX defines the modules; a step splits them once, here, and merges them again at trace time, inside `jax.jit`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxlm.layers import STACK, scanned, unstack_layers
from jaxlm.lora import add_adapters
from jaxlm.model import Decoder
from lmcore.config import Config
from lmcore.model.init import Weights, initial_weight
from lmcore.model.lora import is_trained

__all__ = ["Model", "Params"]

Params = dict[str, Array]
"""Dotted name, such as `layers.0.mlp.up_proj.kernel`, -> array."""


class Model:
    """A decoder without parameter values: their names, shapes and initialization, and a call that merges values in."""

    def __init__(self, config: Config, change: Callable[[Decoder], Decoder] = add_adapters):
        """Describe the decoder of a config, changed by a function that replaces some of its layers."""
        self.config = config
        self.dtype = jnp.dtype(config.train.precision)
        parameter_dtype = jnp.promote_types(self.dtype, jnp.float32)
        remat, sequence = config.train.remat, config.parallel.sequence
        decoder = nnx.eval_shape(lambda: change(Decoder(config.model, self.dtype, remat, sequence)))
        self.graph, state = nnx.split(decoder)
        leaves = {".".join(map(str, path)): (path, leaf.get_value().shape) for path, leaf in nnx.to_flat_state(state)}
        self.paths = {name: path for name, (path, _) in leaves.items()}
        self.shapes = {name: jax.ShapeDtypeStruct(shape, parameter_dtype) for name, (_, shape) in leaves.items()}
        trained = {name: is_trained(config.model, name) for name in self.shapes}
        self.trained, self.frozen = (
            {name: leaf for name, leaf in self.shapes.items() if trained[name] is wanted} for wanted in (True, False)
        )

    def initial_params(self) -> Params:
        """Return the weights of the shared NumPy initialization for `train.seed`."""
        return {name: jnp.asarray(self.initial_weight(name)) for name in self.shapes}

    def initial_weight(self, name: str, weights: Weights | None = None) -> np.ndarray:
        """Return the initial value of one parameter, that of `weights` where they are given."""
        leaf, train = self.shapes[name], self.config.train
        if weights is not None:
            return weights(name, leaf.shape).astype(leaf.dtype)
        return initial_weight(train.seed, name, leaf.shape, self.config.model).astype(leaf.dtype)

    def __call__(self, params: Params) -> Decoder:
        """The decoder with these parameters, which may be stacked (see `jaxlm.layers`)."""
        unstacked = unstack_layers(params, self.config.model.n_layers)
        leaves = [(self.paths[name], nnx.Param(value)) for name, value in unstacked.items()]
        decoder = nnx.merge(self.graph, nnx.from_flat_state(leaves))
        stacks = {name.removeprefix(STACK): value for name, value in params.items() if name.startswith(STACK)}
        if stacks:
            leaves = [(self.paths[f"layers.0.{name}"][2:], nnx.Param(value)) for name, value in stacks.items()]
            decoder.through = partial(scanned, weights=nnx.from_flat_state(leaves))
        return decoder

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters, each scalar counted."""
        return sum(leaf.size for leaf in self.trained.values())
