"""The KV cache of generation."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlm.attention import by_head

__all__ = ["Cache", "at", "write"]


class Cache(NamedTuple):
    """The KV cache: keys and values of the positions seen so far, one tensor per layer; updated in place."""

    keys: tuple[Float[Tensor, "B K S H"], ...]
    values: tuple[Float[Tensor, "B K S H"], ...]
    pads: Int[Tensor, " B"]
    """Positions of left padding in each sequence."""
    lengths: Int[Tensor, " B"]
    """Positions filled in each sequence; on the CPU, which chooses how much of the cache to read."""
    previous: Int[Tensor, "B P"]
    """Ids of the last `model.previous_tokens` tokens of each sequence."""


def at(x: Float[Tensor, "B T *S"], index: Int[Tensor, " B"]) -> Float[Tensor, "B 1 *S"]:
    """Return one position of each sequence."""
    return x[torch.arange(len(x), device=x.device), index.to(x.device)].unsqueeze(1)


def write(
    cached: Float[Tensor, "B K S H"], new: Float[Tensor, "B T K H"], starts: Int[Tensor, " B"]
) -> Float[Tensor, "B K S H"]:
    """Replace T positions of each sequence in one layer's keys or values, in place, and return these.

    Args:
        cached: of the cache.
        new: keys or values of T positions.
        starts: the first of these positions in each sequence; on the CPU.
    """
    count, first = new.shape[1], int(starts[0])
    if (starts == first).all():  # a copy is faster than an index
        cached[:, :, first : first + count] = by_head(new)
        return cached
    starts = starts.to(cached.device)[:, None]
    sequences = torch.arange(len(starts), device=cached.device)[:, None]
    cached[sequences, :, starts + torch.arange(count, device=cached.device)] = new.to(cached.dtype)
    return cached
