"""Dropout with the same masks on both sides: the n-th mask of either is made by one function, in the order of calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np

from lmcore.errors import UserError

__all__ = ["Masks", "drawn", "jax_masks", "kept", "torch_masks"]

Masks = Callable[[int, tuple[int, ...], float], np.ndarray]
"""From the number of a call, the shape of the mask and the probability of keeping a value to truth values."""


def drawn(number: int, shape: tuple[int, ...], keep: float) -> np.ndarray:
    """Return a mask drawn at random, the same on both sides where the shape is.

    Args:
        number: of the call, from 0.
        shape: of the mask.
        keep: probability that a value is kept.
    """
    return np.random.default_rng(number).random(shape) < keep


def kept(number: int, shape: tuple[int, ...], keep: float) -> np.ndarray:
    """Return a mask that drops nothing; as of any mask, what is kept is divided by `keep`."""
    return np.ones(shape, bool)


@contextmanager
def jax_masks(masks: Masks) -> Iterator[None]:
    """Let `jax.random.bernoulli`, by which Flax, Haiku and Equinox draw their masks, return these."""
    import jax

    numbers, original = count(), jax.random.bernoulli

    def bernoulli(key: Any, p: Any = 0.5, shape: Any = None, **options: Any) -> jax.Array:
        return jax.numpy.asarray(masks(next(numbers), tuple(np.shape(p) if shape is None else shape), float(p)))

    jax.random.bernoulli = bernoulli  # type: ignore[assignment]
    try:
        yield
    finally:
        jax.random.bernoulli = original


@contextmanager
def torch_masks(masks: Masks) -> Iterator[None]:
    """Let torch's dropout, also within attention, use these masks."""
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    numbers = count()

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0:
            return x
        mask = torch.from_numpy(masks(next(numbers), tuple(x.shape), 1 - p)).to(x.device)
        return torch.where(mask, x / (1 - p), 0)

    def attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3) for x in (k, v))
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if attn_mask is not None:
            masked = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
            scores = masked
        return dropout(scores.softmax(-1), dropout_p) @ v

    def of_channels(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0:
            return x
        shape = (*x.shape[:2], *(1 for _ in x.shape[2:]))
        mask = torch.from_numpy(masks(next(numbers), shape, 1 - p)).to(x.device)
        return torch.where(mask, x / (1 - p), 0)

    class WithMasks(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in (F.dropout, torch.dropout, torch.dropout_):
                return dropout(*args, **kwargs)
            if func in (F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout):
                return of_channels(*args, **kwargs)
            if func in (F.alpha_dropout, F.feature_alpha_dropout) and (kwargs.get("training") or args[2:3] == (True,)):
                raise UserError("train: alpha_dropout draws masks that cannot be given; set its probability to 0")
            if func is F.scaled_dot_product_attention and (kwargs.get("dropout_p") or (args[4:5] or (0,))[0]):
                return attention(*args, **kwargs)
            return func(*args, **kwargs)

    with WithMasks():
        yield
