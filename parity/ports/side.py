"""How a model is run, what it computed, and the loss that both sides take the gradient of; without either framework."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from parity.arrays import Arrays
from parity.ports.dropout import Masks, drawn
from parity.ports.trees import Leaves, projection

__all__ = [
    "BITS",
    "DType",
    "Framework",
    "Port",
    "Request",
    "Side",
    "Updated",
    "carrier",
    "projected",
    "projected_size",
]

DType = Literal["float64", "float32", "bfloat16", "float16"]
Framework = Literal["jax", "torch"]
BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}
"""Real type -> its width."""


def carrier(dtype: str) -> str:
    """Return the NumPy type that holds values of a type exactly: NumPy has no bfloat16."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a side is run."""

    args: tuple[Any, ...]
    """Arguments of the model: trees of NumPy arrays."""
    dtype: DType = "float64"
    device: str = "cpu"
    train: bool = False
    """Whether modules are in training mode: dropout is on, and norms over the batch update their statistics."""
    masks: Masks = drawn
    loss: Callable[[Any], Any] | None = None
    """From the model's outputs to a scalar; None for a sum of all with fixed random weights."""
    outputs: Mapping[str, str] | None = None
    """Name -> the model's own name of the outputs that are compared; None for all."""
    optimizer: Any = None
    """An optax transformation; or a function from torch's parameters to an optimizer, alone or with its scheduler."""
    batches: Sequence[tuple[Any, ...]] = ()
    """Arguments of each step of training."""

    def chosen(self, leaves: Leaves) -> Leaves:
        """Return the outputs that are compared, by their common names."""
        if self.outputs is None:
            return leaves
        return {name: leaves[own] for name, own in self.outputs.items() if own in leaves}


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one framework computed, by its own names."""

    activations: Arrays
    """Values passed to `tap`, and the first output of every submodule, in the order of computation."""
    modules: dict[str, tuple[str, ...]]
    """Name of a submodule's activation -> parameters and statistics under that submodule."""
    outputs: Arrays
    loss: float
    loss_size: float = 0.0
    """Root of the sum of squares of its terms, where the loss is the sum of all outputs with fixed random weights."""
    grads: Arrays
    input_grads: Arrays
    """Gradients of the real inputs, by their places."""
    state: Arrays
    """Statistics after the call, such as a BatchNorm's."""


@dataclass(frozen=True)
class Updated:
    """Parameters and moments after one update, by the side's own names."""

    params: Arrays
    moments: dict[str, Arrays] = field(default_factory=dict)
    """Kind, as optax names it -> parameter -> array."""


@runtime_checkable
class Port(Protocol):
    """A model in one framework, with what a comparison asks of it; arrays have the model's own names."""

    framework: Framework
    request: Request
    weights: Arrays
    """Parameters and statistics that the model was handed over with."""
    trained: tuple[str, ...]
    """Names of those that get a gradient."""
    frozen: tuple[str, ...]
    """Names of those whose gradient the user's own model does not ask for."""
    optimizer: str
    """Class of the optimizer that made updates; empty before, and where it has none."""

    def in_dtype(self, dtype: DType) -> "Port":
        """Return the same model, to run in another type."""

    def output_names(self) -> list[str]:
        """Return the names of the model's outputs."""

    def run(self, weights: Arrays) -> Side:
        """Run the model and its gradients from these weights."""

    def narrow(self) -> dict[str, str]:
        """Return the operations whose results are narrower than asked for: description -> type."""

    def updates(self, weights: Arrays, grads: Arrays, factors: Sequence[float]) -> list[Updated]:
        """Return what the optimizer makes of the same gradients, times one factor after the other."""

    def curve(self, weights: Arrays) -> np.ndarray:
        """Return the loss of each step of training."""


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


def projected_size(outputs: Arrays) -> float:
    """Return the root of the sum of squares of what `projected` sums up: its terms may cancel, and rounding does not.

    Args:
        outputs: under the names that both sides use.
    """
    parts = [(name, part) for name, leaf in outputs.items() for part in _real_parts(leaf)]
    return float(np.sqrt(sum(((part * projection(name, part.shape)) ** 2).sum() for name, part in parts)))


def _real_parts(leaf: Any) -> tuple[Any, ...]:
    """Return the real values of a leaf; none of integers and truth values."""
    kind = str(leaf.dtype)
    if "complex" in kind:
        return leaf.real, leaf.imag
    return (leaf,) if "float" in kind else ()
