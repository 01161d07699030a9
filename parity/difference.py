"""Comparison of arrays, and the table of tolerances: the ladder, ports and tests all use these.

A relative difference is the largest absolute difference divided by the largest absolute value of either array, tensor
by tensor: small values of a tensor, which may be no more than its rounding errors, do not decide. The difference of
values that are not finite, but for −inf in both, and of arrays of different shapes, is infinite.
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
    "update": {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-5},  # parameters and moments are float32
}
"""Kind of values -> dtype -> largest relative difference. Never loosened: a larger difference has a cause."""


def tolerance(kind: Kind, dtype: str) -> float | None:
    """Return the tolerance of a kind of values in a dtype; None where the difference is only reported."""
    return TOLERANCES[kind].get(dtype)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest difference between two arrays, and its place."""

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
    """Set where shapes differ, or values are not finite."""

    @property
    def place(self) -> str:
        """Name and index of the largest difference, for reports."""
        if self.max_abs == 0:
            return ""
        return f"{self.name} {self.note}" if self.note else f"{self.name}[{', '.join(map(str, self.where or ()))}]"

    def within(self, tolerance: float) -> bool:
        """Return whether the relative difference is at most `tolerance`; false for NaN."""
        return self.max_rel <= tolerance


def difference(name: str, left: Any, right: Any) -> Difference:
    """Compare two arrays.

    Args:
        name: of both arrays.
        left: NumPy, JAX or torch values of any shape and float dtype, compared in float64; of complex values the real
            and imaginary parts are compared, as a last axis of two.
        right: the values to compare with, of the same shape.
    """
    one, other = _as_float64(left), _as_float64(right)
    if one.shape != other.shape:
        note = f"has shape {list(one.shape)} against {list(other.shape)}"
        return Difference(
            name=name, max_abs=math.inf, max_rel=math.inf, where=None, left=math.nan, right=math.nan, note=note
        )
    if one.size == 0:
        return Difference(name=name, max_abs=0.0, max_rel=0.0, where=(), left=math.nan, right=math.nan)
    finite = np.isfinite(one) & np.isfinite(other)
    masked = (one == -np.inf) & (other == -np.inf)  # the logit of a token that is not allowed
    deviation = np.abs(np.subtract(one, other, where=finite, out=np.where(masked, 0.0, np.inf)))
    where = np.unravel_index(int(np.argmax(deviation)), deviation.shape)
    largest = float(deviation[where])
    scale = max(float(np.abs(values).max(initial=0.0, where=np.isfinite(values))) for values in (one, other))
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
    """Compare arrays by name, in the order of `left`; the difference is infinite where a side lacks a name."""
    differences = [difference(name, left[name], right[name]) for name in left if name in right]
    absent = [(name, "first") for name in right if name not in left]
    absent += [(name, "second") for name in left if name not in right]
    inf, nan = math.inf, math.nan
    return differences + [
        Difference(name=n, max_abs=inf, max_rel=inf, where=None, left=nan, right=nan, note=f"is missing on the {side}")
        for n, side in absent
    ]


def worst(differences: Iterable[Difference]) -> Difference:
    """Return the largest relative difference; the first of equals."""
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
        before: parameters before the update, by name.
        one: the reference's parameters after it.
        other: the port's parameters after it.
        gap: known differences, added to the reference's parameters.
        steps: updates since both were in the same state. Each rounds the parameter once in either twin, which may add
            one ulp to the difference.
        left_out: by parameter, True where the update is undecided; those values are not compared.
    """
    differences = []
    for name, start in before.items():
        left, right = one[name] + gap.get(name, 0.0), other[name].astype(np.float64)
        if name in left_out:
            right = np.where(left_out[name], left, right)
        raw = difference(name, left, right)
        if not math.isfinite(raw.max_abs):
            differences.append(raw)
            continue
        rounding = steps * np.finfo(start.dtype).eps * np.abs(left)
        excess = np.maximum(np.abs(left - right) - rounding, 0.0)
        where = np.unravel_index(int(np.argmax(excess)), excess.shape)
        largest_change = float(np.abs(one[name].astype(np.float64) - start).max())
        largest_excess = float(excess[where])
        relative = 0.0 if largest_excess == 0 else largest_excess / largest_change if largest_change > 0 else math.inf
        index = tuple(int(i) for i in where)
        differences.append(
            replace(raw, max_rel=relative, where=index, left=float(left[where]), right=float(right[where]))
        )
    return differences


def _as_float64(values: Any) -> np.ndarray:
    """Convert values to float64, which holds every dtype compared here exactly; complex values become pairs."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().resolve_conj()
        values = values.double() if values.is_floating_point() else values
    array = np.asarray(values)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1)
    return array.astype(np.float64)
