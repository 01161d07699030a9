"""The state that each optimizer keeps, and the choices on which optax and torch differ by default."""

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["OPTIMIZERS", "Optimizer", "OptimizerName", "kinds_of", "takes_muon"]

OptimizerName = Literal["adamw", "adafactor", "muon", "lion", "sgd"]
"""Values of `optim.name`; each has a row in `OPTIMIZERS`."""


@dataclass(frozen=True)
class Optimizer:
    """The state of an optimizer, and which config fields it reads.

    Kinds of state: the `mean` of gradients and the mean of their `square`s, which are Adam's two moments; `momentum`;
    and, for an R × C matrix, the means of squared gradients of each row (`rows`, R × 1) and column (`columns`, 1 × C).
    """

    matrix: tuple[str, ...]
    """Kinds of state kept for a matrix."""
    vector: tuple[str, ...]
    """Kinds of state kept for a vector."""
    counts: bool = False
    """Whether the state includes the number of updates."""
    corrects_bias: bool = False
    """Whether means are bias-corrected: divided by 1 − β^t."""
    reads: tuple[str, ...] = ()
    """Fields of `optim` that it reads, in addition to those that all optimizers read."""
    rest: str | None = None
    """Name of the optimizer for all parameters but the blocks' matrices; None if one optimizer trains all."""


OPTIMIZERS = {
    "adamw": Optimizer(("mean", "square"), ("mean", "square"), True, True, ("beta1", "beta2", "eps")),
    "adafactor": Optimizer(("rows", "columns"), ("square",), True),
    "muon": Optimizer(("momentum",), (), True, True, ("momentum", "beta1", "beta2", "eps"), rest="adamw"),
    "lion": Optimizer(("mean",), ("mean",), reads=("beta1", "beta2")),
    "sgd": Optimizer(("momentum",), ("momentum",), reads=("momentum",)),
}
"""`optim.name` -> its state."""

if OPTIMIZERS.keys() != set(get_args(OptimizerName)):
    raise AssertionError(f"OPTIMIZERS: found {sorted(OPTIMIZERS)}, expected {sorted(get_args(OptimizerName))}")


def takes_muon(name: str, ndim: int) -> bool:
    """Return whether Muon trains a parameter, given its dotted name: only the matrices of the blocks.

    AdamW trains embeddings, output head, norms and biases (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    """
    return name.startswith("layers.") and ndim == 2


def kinds_of(optimizer: str, name: str, ndim: int) -> tuple[str, ...]:
    """Return the kinds of state that an optimizer keeps for one parameter.

    Args:
        optimizer: `optim.name`.
        name: dotted name of the parameter.
        ndim: number of its dimensions.
    """
    entry = OPTIMIZERS[optimizer]
    if entry.rest is not None and not takes_muon(name, ndim):
        entry = OPTIMIZERS[entry.rest]
    return entry.matrix if ndim == 2 else entry.vector
