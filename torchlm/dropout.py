"""Dropout with masks from torch's own generator, which the caller seeds, or from a random key, with jax's masks.

The keyed generator is jax's: threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), counted
as with `jax_threefry_partitionable`: number i depends on the key and on i alone, so that each process draws its part of
the global batch's masks by itself. Words of 32 bits are stored as int64.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Key", "MaskKey", "Part", "dropout", "fold_in", "seed_key", "split"]


class Part(NamedTuple):
    """One of several equal, contiguous parts of a dimension."""

    number: int = 0
    """Its number, from 0."""
    parts: int = 1
    """Number of all parts."""


class MaskKey(NamedTuple):
    """A random key of masks, and the part of them that this process draws."""

    words: Int[Tensor, "2"]
    """Two words of 32 bits, as in jax."""
    rows: Part = Part()
    """Part of the micro-batch."""
    positions: Part = Part()
    """Part of the positions in the residual stream, with sequence parallelism."""
    heads: Part = Part()
    """Part of the heads in attention, with tensor parallelism."""


Key = MaskKey | Literal["native"] | None
"""Source of the masks: a random key; or "native", torch's own generator, in the order of the calls; None switches
dropout off."""

WEIGHTS = 4
"""Number of dimensions of attention weights."""
WORD = 0xFFFFFFFF
ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def split(key: Key, count: int) -> list[Key]:
    """Split a key into `count` independent keys; None stays None."""
    if not isinstance(key, MaskKey):
        return [key] * count
    words = torch.stack(threefry(key.words, torch.arange(count, device=key.words.device)), dim=-1)
    return [key._replace(words=own) for own in words]


def dropout(x: Float[Tensor, "*S"], rate: float, key: Key) -> Float[Tensor, "*S"]:
    """Zero a fraction `rate` of x and scale up the rest; without a key, return x unchanged.

    Args:
        x: activations B × T × D, or attention weights B × N × T × S.
        rate: fraction to zero; the rest is divided by 1 − rate.
        key: random key of the mask; None switches dropout off.
    """
    if key is None or rate == 0:
        return x
    if not isinstance(key, MaskKey):
        return F.dropout(x, rate)
    parts = key.rows, key.heads if x.ndim == WEIGHTS else key.positions
    return torch.where(bernoulli(key.words, 1 - rate, x.shape, parts), x / (1 - rate), 0)


def seed_key(seed: int, device: torch.device) -> Int[Tensor, "2"]:
    """Return the key that `jax.random.key` makes of a seed below 2^31."""
    return torch.tensor([0, seed], device=device)


def fold_in(key: Int[Tensor, "2"], number: int) -> Int[Tensor, "2"]:
    """Return an independent key for each number, as `jax.random.fold_in`."""
    return torch.stack(threefry(key, torch.tensor(number, device=key.device)))


def bernoulli(
    key: Int[Tensor, "2"], chance: float, shape: torch.Size, parts: Sequence[Part] = ()
) -> Bool[Tensor, "*S"]:
    """Draw True with this probability: where 23 random bits, as a fraction of one, are below it in float32.

    Args:
        key: two words of 32 bits.
        chance: probability of True.
        shape: of the result.
        parts: which part of a larger draw the result is, along its first dimensions.
    """
    high, low = threefry(key, _counts(shape, parts, key.device))
    uniform = ((high ^ low) >> 9).to(torch.float32) * 2.0**-23
    return (uniform < torch.tensor(chance, dtype=torch.float32, device=key.device)).reshape(shape)


def _counts(shape: torch.Size, parts: Sequence[Part], device: torch.device) -> Int[Tensor, " N"]:
    """Return the index of each element among those of the whole draw."""
    split = min(len(parts), len(shape))
    counts = torch.zeros(1, dtype=torch.int64, device=device)
    for size, part in zip(shape[:split], parts):
        own = torch.arange(size, device=device) + part.number * size
        counts = (counts[:, None] * (part.parts * size) + own).flatten()
    rest = math.prod(shape[split:])
    return (counts[:, None] * rest + torch.arange(rest, device=device)).flatten()


def threefry(key: Int[Tensor, "2"], counts: Int[Tensor, "*S"]) -> tuple[Int[Tensor, "*S"], Int[Tensor, "*S"]]:
    """Return both words of threefry-2x32, in 20 rounds, at each count."""
    keys = key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA
    x, y = ((counts >> 32) + keys[0]) & WORD, ((counts & WORD) + keys[1]) & WORD
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x = (x + y) & WORD
            y = (((y << rotation) & WORD) | (y >> (32 - rotation))) ^ x
        x, y = (x + keys[(group + 1) % 3]) & WORD, (y + keys[(group + 2) % 3] + group + 1) & WORD
    return x, y
