"""What an audit reads from a program: its matmuls, large tensors, donated buffers, host callbacks and kernels."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from parity.plan.hlo import Collective

__all__ = ["KERNELS", "NARROW", "OPTIMIZER", "Array", "Facts", "Matmul", "quadratic"]

NARROW = ("bf16", "f16")
"""Dtypes of 16 bits, by the names that StableHLO, HLO and `short_dtype` share."""
SMALL = 1e-3
"""A matmul with less than this fraction of the largest one's FLOPs is small."""
OPTIMIZER = "/optimizer/"
"""In the name of each operation of the update, by `jax.named_scope`."""
KERNELS = {
    "__cudnn$fmhaSoftmax": "cuDNN forward",
    "__cudnn$fmhaSoftmaxBackward": "cuDNN backward",
    "tpu_custom_call": "Pallas for TPU",
}
"""Target of a custom call -> the attention kernel that it is."""


@dataclass(frozen=True)
class Array:
    """Dtype and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Matmul:
    """A matmul in a program, or one of a kind that appears several times."""

    factors: tuple[Array, Array]
    result: Array
    count: int = 1
    optimizer: bool = False
    """Whether it is part of the optimizer's update, which is float32 by contract."""

    def __str__(self) -> str:
        return f"{self.factors[0]} × {self.factors[1]}"

    @property
    def flops(self) -> float:
        """FLOPs of one: exact without batch dimensions, else more by the square root of their size."""
        return 2 * math.sqrt(math.prod(factor.size for factor in self.factors) * self.result.size)

    @property
    def narrow(self) -> bool:
        """Whether both factors have 16 bits."""
        return all(factor.dtype in NARROW for factor in self.factors)


@dataclass(frozen=True)
class Facts:
    """What was found in one program."""

    matmuls: tuple[Matmul, ...] = ()
    quadratic: tuple[Array, ...] = ()
    """Tensors of T × T elements or more, the largest first."""
    donated: int = 0
    """Buffers that an output takes."""
    callbacks: tuple[str, ...] = ()
    """Operations that wait for the host."""
    kernels: dict[str, int] = field(default_factory=dict)
    """Attention kernel -> number of calls in the program's text; one inside a loop counts once."""
    collectives: tuple[Collective, ...] | None = None
    """None before a compiler has partitioned the program."""

    @property
    def large(self) -> list[Matmul]:
        """The matmuls in which the FLOPs are."""
        most = max((each.flops for each in self.matmuls), default=0.0)
        return [each for each in self.matmuls if each.flops >= SMALL * most]


def quadratic(arrays: Iterable[Array], length: int) -> tuple[Array, ...]:
    """Return the arrays in which one dimension is T and another a multiple of it, the largest first.

    Args:
        arrays: of a program.
        length: T, which must divide no other size of the model (see `parity.audit.programs.audited`).
    """
    found = set()
    for array in arrays:
        multiples = [size for size in array.shape if size and size % length == 0]
        if len(multiples) > 1 and length in multiples:
            found.add(array)
    return tuple(sorted(found, key=lambda array: (-array.size, str(array))))
