"""Dropout: masks from torch's own generator, which its caller has seeded."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["Key", "dropout", "split"]

Key = Literal["native"] | None
"""What masks are drawn from: torch's own generator, in the order in which they are asked for; None where nothing is
dropped."""


def split(key: Key, count: int) -> list[Key]:
    """As many keys as are asked for, unrelated to one another; none from none."""
    return [key] * count


def dropout(x: Float[Tensor, "*S"], rate: float, key: Key) -> Float[Tensor, "*S"]:
    """Zero a share `rate` of x and scale up the rest; without a key, x itself."""
    return x if key is None else F.dropout(x, rate)
