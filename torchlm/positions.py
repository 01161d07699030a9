"""Absolute positions: what is added to the embedding where `model.position` is not rope.

`unrotated` then takes the place of the rotation of queries and keys.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmcore.config import ModelConfig
from lmcore.model.rope import sinusoidal_table

__all__ = ["POSITIONS", "LearnedPositions", "NoPositions", "SinusoidalPositions", "unrotated"]


class NoPositions(nn.Module):
    """Identity, where positions rotate queries and keys, or the model has none."""

    def __init__(self, config: ModelConfig):
        super().__init__()

    def forward(self, x: Float[Tensor, "B T D"], positions: Int[Tensor, "#B T"]) -> Float[Tensor, "B T D"]:
        return x


class LearnedPositions(nn.Module):
    """Learned positions: x plus one row of weights per position (Radford et al. 2019, GPT-2)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.max_seq_len, config.dim))

    def forward(self, x: Float[Tensor, "B T D"], positions: Int[Tensor, "#B T"]) -> Float[Tensor, "B T D"]:
        return x + self.weight[positions]


class SinusoidalPositions(nn.Module):
    """Sinusoidal positions: √D · x plus sines and cosines (Vaswani et al. 2017, arXiv:1706.03762, 3.4 and 3.5)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        table = torch.tensor(sinusoidal_table(config), device="cpu")  # the decoder casts it to its dtype
        self.register_buffer("table", table, persistent=False)
        self.scale = math.sqrt(config.dim)

    def forward(self, x: Float[Tensor, "B T D"], positions: Int[Tensor, "#B T"]) -> Float[Tensor, "B T D"]:
        return x * self.scale + self.get_buffer("table")[positions]


POSITIONS = {
    "rope": NoPositions,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "none": NoPositions,
}
"""`model.position` -> what is added to the embedding."""


def unrotated(
    x: Float[Tensor, "B T N H"], cos: Float[Tensor, "#B T _"], sin: Float[Tensor, "#B T _"]
) -> Float[Tensor, "B T N H"]:
    """Return x unchanged: queries or keys of a model without RoPE.

    Args:
        x: queries or keys.
        cos: not used.
        sin: not used.
    """
    return x
