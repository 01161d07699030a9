"""Absolute positions: what is added to the embedding where `model.position` is not rope.

`unrotated` then takes the place of the rotation of queries and keys.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lmcore.config import ModelConfig
from lmcore.model.rope import sinusoidal_table

__all__ = ["POSITIONS", "LearnedPositions", "NoPositions", "SinusoidalPositions", "unrotated"]


class NoPositions(nnx.Module):
    """Identity, where positions rotate queries and keys, or the model has none."""

    def __init__(self, config: ModelConfig):
        pass

    def __call__(self, x: Float[Array, "B T D"], positions: Int[Array, "#B T"]) -> Float[Array, "B T D"]:
        return x


class LearnedPositions(nnx.Module):
    """Learned positions: x plus one row of weights per position (Radford et al. 2019, GPT-2)."""

    def __init__(self, config: ModelConfig):
        self.weight = nnx.Param(jnp.zeros((config.max_seq_len, config.dim)))

    def __call__(self, x: Float[Array, "B T D"], positions: Int[Array, "#B T"]) -> Float[Array, "B T D"]:
        return x + self.weight[...][positions]


class SinusoidalPositions(nnx.Module):
    """Sinusoidal positions: √D · x plus sines and cosines (Vaswani et al. 2017, arXiv:1706.03762, 3.4 and 3.5)."""

    def __init__(self, config: ModelConfig):
        self.config = config

    def __call__(self, x: Float[Array, "B T D"], positions: Int[Array, "#B T"]) -> Float[Array, "B T D"]:
        table = jnp.asarray(sinusoidal_table(self.config), x.dtype)
        return x * math.sqrt(self.config.dim) + table[positions]


POSITIONS = {
    "rope": NoPositions,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "none": NoPositions,
}
"""`model.position` -> what is added to the embedding."""


def unrotated(
    x: Float[Array, "B T N H"], cos: Float[Array, "#B T _"], sin: Float[Array, "#B T _"]
) -> Float[Array, "B T N H"]:
    """Return x unchanged: queries or keys of a model without RoPE.

    Args:
        x: queries or keys.
        cos: not used.
        sin: not used.
    """
    return x
