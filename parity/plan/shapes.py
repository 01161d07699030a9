"""What a plan is made of, besides the mesh: the weights by kind, and the shapes of the train state."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.engine import state_shapes
from jaxlm.functional import Model
from jaxlm.layers import stack_layers
from lmcore.config import Config

__all__ = ["Shapes", "Weight", "shapes_of"]


@dataclass(frozen=True)
class Weight:
    """A parameter that each of several layers has."""

    name: str
    """Of the first layer's."""
    shape: tuple[int, ...]
    """A matrix's is (inputs, outputs), an embedding's (number of embeddings, D)."""
    count: int
    """Number of layers that have one; 1 outside of the layers."""


@dataclass(frozen=True, eq=False)
class Shapes:
    """Shapes of one model and its optimizer; hashed by identity."""

    weights: tuple[Weight, ...]
    params: dict[str, Any]
    """Name -> shape and dtype."""
    state: Any
    """Of the whole train state, stacked over the layers."""
    wide: int
    """Bytes of a parameter, and of a value of the residual stream."""
    narrow: int
    """Bytes of a value in a matmul."""


def shapes_of(config: Config) -> Shapes:
    """Return the shapes of a config's model, of which nothing is allocated."""
    model = Model(config)
    names = Counter(re.sub(r"^layers\.\d+\.", "layers.0.", name) for name in model.shapes)
    weights = tuple(Weight(name, model.shapes[name].shape, count) for name, count in names.items())
    state = jax.eval_shape(stack_layers, state_shapes(model))
    wide = model.shapes["embed_tokens.weight"].dtype.itemsize
    return Shapes(weights, model.shapes, state, wide, jnp.dtype(model.dtype).itemsize)
