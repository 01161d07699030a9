"""Layouts of tensors that hold several of a Llama's.

Nothing is computed: rows change their places. Layouts are of tensors as torch has them, output × input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmcore.config import ModelConfig

__all__ = ["CONV1D", "INTERLEAVED", "STACKED", "Layout"]

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Layout:
    """How one tensor holds several."""

    join: Callable[[Arrays, ModelConfig], np.ndarray]
    split: Callable[[np.ndarray, Sequence[int], ModelConfig], Arrays]
    """Takes the number of rows of each part."""


def _stack(parts: Arrays, model: ModelConfig) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _unstack(whole: np.ndarray, rows: Sequence[int], model: ModelConfig) -> Arrays:
    return np.split(whole, np.cumsum(rows)[:-1])


def _interleave(parts: Arrays, model: ModelConfig) -> np.ndarray:
    heads = [part.reshape(model.n_heads, model.head_dim, *part.shape[1:]) for part in parts]
    return np.stack(heads, axis=1).reshape(-1, *parts[0].shape[1:])


def _separate(whole: np.ndarray, rows: Sequence[int], model: ModelConfig) -> Arrays:
    heads = whole.reshape(model.n_heads, len(rows), model.head_dim, *whole.shape[1:])
    return [heads[:, i].reshape(-1, *whole.shape[1:]) for i in range(len(rows))]


STACKED = Layout(_stack, _unstack)
"""One after another."""
CONV1D = Layout(lambda parts, model: _stack(parts, model).T, lambda whole, rows, model: _unstack(whole.T, rows, model))
"""One after another, and transposed: input × output, as in GPT-2."""
INTERLEAVED = Layout(_interleave, _separate)
"""Head by head: queries, keys and values of the first, then those of the second, as in GPT-NeoX."""
