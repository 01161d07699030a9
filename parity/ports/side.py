"""What one framework computed, and the loss that both take the gradient of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.backends.base import Arrays
from parity.ports.trees import Leaves, projection

__all__ = ["Call", "Side", "projected"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """How both sides are called."""

    args: tuple[Any, ...]
    """Trees of NumPy arrays."""
    dtype: str
    losses: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None
    """From the outputs of JAX and of torch to a scalar; None for a sum with fixed random weights."""
    outputs: Mapping[str, tuple[str, str]]
    """Name -> names of the leaf in JAX and in torch; those that the loss depends on."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The results of one framework."""

    activations: Arrays
    outputs: Arrays
    loss: float
    grads: Arrays
    """Gradients by JAX's names, in JAX's layout."""
    input_grads: Arrays
    """Gradients of the real inputs, by their places."""
    narrow: tuple[str, ...] = field(default=())
    """Operations that compute in a narrower type than asked for."""


def projected(leaves: Leaves, convert: Callable[[np.ndarray], Any]) -> Any:
    """Return a scalar that depends on every real or complex value of the outputs.

    Args:
        leaves: outputs under the names that both sides use.
        convert: from a NumPy array to the framework's.
    """
    parts = [(name, part) for name, leaf in leaves.items() for part in _real_parts(leaf)]
    if len(parts) == 1 and parts[0][1].ndim == 0:
        return parts[0][1]
    return sum((part * convert(projection(name, part.shape))).sum() for name, part in parts)


def _real_parts(leaf: Any) -> tuple[Any, ...]:
    """Return the real values of a leaf; none of integers and truth values."""
    kind = str(leaf.dtype)
    if "complex" in kind:
        return leaf.real, leaf.imag
    return (leaf,) if "float" in kind else ()
