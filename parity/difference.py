"""The one way in which two arrays are compared, and the one table of tolerances: the ladder, ports and tests use it.

A relative difference is the largest absolute one divided by the largest absolute value of either array, tensor by
tensor: single small values of a tensor, which hold no more than its rounding errors, do not decide. What is not finite,
or has another shape, is infinitely far apart.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

__all__ = ["TOLERANCES", "Difference", "Kind", "compare_all", "difference", "tolerance", "update_differences", "worst"]

Kind = Literal["logits", "gradients", "update"]

TOLERANCES: dict[Kind, dict[str, float]] = {
    "logits": {"float64": 1e-12, "float32": 1e-5},
    "gradients": {"float64": 1e-11, "float32": 1e-4},
    "update": {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-5},  # whose parameters and moments are float32
}
"""Largest relative difference by what is compared and in which type. Never loosened: a larger one has a cause."""


def tolerance(kind: Kind, dtype: str) -> float | None:
    """Tolerance of a kind of values in a type; None where the difference is only reported."""
    return TOLERANCES[kind].get(dtype)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far apart two arrays are, and where most."""

    name: str
    max_abs: float
    max_rel: float
    """`max_abs` divided by the largest absolute value of either array."""
    where: tuple[int, ...] | None
    """Index of the largest difference; None where the shapes differ."""
    left: float
    """Value of the first array there."""
    right: float
    """Value of the second array there."""
    note: str = ""
    """What else is to be said: that shapes differ, or that values are not finite."""

    @property
    def place(self) -> str:
        """Name and index, for people."""
        if self.max_abs == 0:
            return ""
        return f"{self.name} {self.note}" if self.note else f"{self.name}[{', '.join(map(str, self.where or ()))}]"

    def within(self, tolerance: float) -> bool:
        """Whether the relative difference is no larger than `tolerance`; NaN is not."""
        return self.max_rel <= tolerance


def difference(name: str, left: Any, right: Any) -> Difference:
    """Compare two arrays.

    Args:
        name: what they are.
        left: NumPy, JAX or host torch values of any float type; bfloat16 is widened, and of complex values the real
            and imaginary parts are compared, as a last axis of two.
        right: the same on the other side.
    """
    one, other = _wide(left), _wide(right)
    if one.shape != other.shape:
        note = f"has shape {list(one.shape)} against {list(other.shape)}"
        return Difference(
            name=name, max_abs=math.inf, max_rel=math.inf, where=None, left=math.nan, right=math.nan, note=note
        )
    if one.size == 0:
        return Difference(name=name, max_abs=0.0, max_rel=0.0, where=(), left=math.nan, right=math.nan)
    finite = np.isfinite(one) & np.isfinite(other)
    apart = np.abs(np.subtract(one, other, where=finite, out=np.full(one.shape, np.inf)))
    where = np.unravel_index(int(np.argmax(apart)), apart.shape)
    largest = float(apart[where])
    scale = max(float(np.abs(one).max()), float(np.abs(other).max()))
    return Difference(
        name=name,
        max_abs=largest,
        max_rel=0.0 if largest == 0 else largest / scale if math.isfinite(largest) else math.inf,
        where=tuple(int(i) for i in where),
        left=float(one[where]),
        right=float(other[where]),
        note="" if math.isfinite(largest) else f"is {one[where]} against {other[where]}",
    )


def compare_all(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Compare arrays by name, in the order of `left`; a name that one side lacks is infinitely far off."""
    found = [difference(name, left[name], right[name]) for name in left if name in right]
    absent = [(name, "first") for name in right if name not in left]
    absent += [(name, "second") for name in left if name not in right]
    inf, nan = math.inf, math.nan
    return found + [
        Difference(name=n, max_abs=inf, max_rel=inf, where=None, left=nan, right=nan, note=f"is missing on the {side}")
        for n, side in absent
    ]


def worst(differences: Iterable[Difference]) -> Difference:
    """The largest by relative difference; the first of equals."""
    return max(differences, key=lambda d: d.max_rel)


def update_differences(
    before: Mapping[str, np.ndarray],
    one: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    gap: Mapping[str, np.ndarray],
    steps: int,
    left_out: Mapping[str, np.ndarray],
) -> list[Difference]:
    """Compare what an update changed, relative to the largest change of each parameter.

    Args:
        before: parameters before the update.
        one: JAX's after it.
        other: torch's after it.
        gap: known differences, to be added to JAX's.
        steps: updates since both were in the same state. Each rounds the parameter once in either twin, which may add
            one ulp to the difference.
        left_out: where the update is undecided, by parameter; those values are not compared.
    """
    found = []
    for name, start in before.items():
        left, right = one[name] + gap.get(name, 0.0), other[name].astype(np.float64)
        if name in left_out:
            right = np.where(left_out[name], left, right)
        raw = difference(name, left, right)
        if not math.isfinite(raw.max_abs):
            found.append(raw)
            continue
        rounding = steps * np.finfo(start.dtype).eps * np.abs(left)
        excess = np.maximum(np.abs(left - right) - rounding, 0.0)
        where = np.unravel_index(int(np.argmax(excess)), excess.shape)
        largest = float(np.abs(one[name].astype(np.float64) - start).max())
        beyond = float(excess[where])
        relative = 0.0 if beyond == 0 else beyond / largest if largest > 0 else math.inf
        index = tuple(int(i) for i in where)
        found.append(replace(raw, max_rel=relative, where=index, left=float(left[where]), right=float(right[where])))
    return found


def _wide(values: Any) -> np.ndarray:
    """As float64, which holds every number of every type compared here, complex ones as two."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().resolve_conj()
        values = values.double() if values.is_floating_point() else values
    array = np.asarray(values)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1)
    return array.astype(np.float64)
