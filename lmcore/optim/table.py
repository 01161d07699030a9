"""What the optimizers keep, and what their libraries leave open or mean differently by default: for both twins."""

from dataclasses import dataclass
from typing import get_args, get_type_hints

import numpy as np

from lmcore.config import OptimConfig

__all__ = ["OPTIMIZERS", "Optimizer", "kinds_of", "least_root", "takes_muon"]


def least_root(dtype: np.dtype) -> float:
    """Least norm that Muon divides a matrix by before it is orthogonalized, and least root of Adafactor's mean squares.

    optax adds it, or its square, where torch takes the larger of the two: so it is further below any norm that occurs
    than the type can tell, and still large enough for squares that underflow: 1e-15 in float32, 1.5e-150 in float64.
    """
    return 1e4 * float(np.sqrt(np.finfo(dtype).tiny))


@dataclass(frozen=True)
class Optimizer:
    """What an optimizer keeps of a run beside the parameters.

    Kinds: `mean` of gradients and of their `square`s; `momentum`; and, of a matrix, the means of squares over all but
    its first axis (`rows`, R × 1) and over all but its last (`columns`, 1 × C).
    """

    matrix: tuple[str, ...]
    """Kinds that it keeps of a matrix."""
    vector: tuple[str, ...]
    """Kinds that it keeps of a vector."""
    counts: bool = False
    """Whether it counts its updates."""
    corrects_bias: bool = False
    """Whether it divides the means of the first steps by 1 − β^t."""
    reads: tuple[str, ...] = ()
    """Fields of `optim` that set it, beside those that all read."""
    rest: str | None = None
    """The optimizer of all but the blocks' matrices, which are orthogonalized; None where there is one for all."""


OPTIMIZERS = {
    "adamw": Optimizer(("mean", "square"), ("mean", "square"), True, True, ("beta1", "beta2", "eps")),
    "adafactor": Optimizer(("rows", "columns"), ("square",), True),
    "muon": Optimizer(("momentum",), (), True, True, ("momentum", "beta1", "beta2", "eps"), rest="adamw"),
    "lion": Optimizer(("mean",), ("mean",), reads=("beta1", "beta2")),
    "sgd": Optimizer(("momentum",), ("momentum",), reads=("momentum",)),
}
"""`optim.name` -> what it keeps."""

if OPTIMIZERS.keys() != (known := set(get_args(get_type_hints(OptimConfig)["name"]))):
    raise AssertionError(f"OPTIMIZERS: found {sorted(OPTIMIZERS)}, expected those of optim.name, {sorted(known)}")


def takes_muon(name: str, ndim: int) -> bool:
    """Whether Muon trains a parameter, by its dotted name: the matrices of the blocks.

    Embeddings, output head, norms and biases are AdamW's (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    """
    return name.startswith("layers.") and ndim == 2


def kinds_of(optimizer: str, name: str, ndim: int) -> tuple[str, ...]:
    """Kinds that an optimizer keeps of one parameter.

    Args:
        optimizer: `optim.name`.
        name: of the parameter, dotted.
        ndim: its number of axes.
    """
    found = OPTIMIZERS[optimizer]
    if found.rest is not None and not takes_muon(name, ndim):
        found = OPTIMIZERS[found.rest]
    return found.matrix if ndim == 2 else found.vector
