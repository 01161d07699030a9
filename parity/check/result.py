"""One line of the ladder's table, and the verdict on a list of differences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from parity.difference import Difference, Kind, tolerance, worst

__all__ = ["MESH_RUNG", "Result", "Verdict", "distributions", "identical", "judge"]

MESH_RUNG = 12
"""Number of the rung of runs on meshes, which is climbed by itself."""

Verdict = Literal["pass", "FAIL", "reported", "skipped"]
"""`reported` is a difference that has no tolerance; `skipped` is a comparison that could not be made."""

MAX_DIVERGENCE, MIN_AGREEMENT = 1e-3, 0.99
"""Limits for next-token distributions in 16 bits: mean KL divergence in nats, and fraction of positions with the same
most likely token."""

ROUNDING_16 = 2.0**-8
"""Relative rounding of bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one comparison on one rung."""

    rung: int
    what: str
    dtype: str
    verdict: Verdict
    max_abs: float | None = None
    max_rel: float | None = None
    where: str = ""
    """Place of the largest difference; where the comparison failed, of the first divergent value."""
    first: str = ""
    """Name of the first divergent value, where the comparison failed."""
    limit: str = ""
    """The tolerance, as text."""
    note: str = ""
    seconds: float = 0.0
    differences: tuple[Difference, ...] = ()
    """All differences, in the order of computation."""
    curves: dict[str, list[float]] = field(default_factory=dict)
    """Losses of a training trajectory by framework, the reference first, and their noise: `floor`, `highest`."""

    @property
    def ok(self) -> bool:
        """Whether the comparison did not fail."""
        return self.verdict != "FAIL"


def judge(
    rung: int, what: str, dtype: str, differences: Sequence[Difference], limit: Kind | float | None, note: str = ""
) -> Result:
    """Return a line from differences in the order of computation.

    Args:
        rung: number of the rung.
        what: what was compared.
        dtype: precision of the twins.
        differences: at least one; the first that is too large is named.
        limit: maximum relative difference, or the kind of values whose tolerance in `dtype` applies; None only reports.
        note: a remark for the table.
    """
    allowed = tolerance(limit, dtype) if isinstance(limit, str) else limit
    largest = worst(differences)
    beyond = None if allowed is None else next((d for d in differences if not d.within(allowed)), None)
    if beyond is not None and len(differences) > 1:
        note = "; ".join(filter(None, [f"first divergent: {beyond.name}", note]))
    return Result(
        rung=rung,
        what=what,
        dtype=dtype,
        verdict="reported" if allowed is None else "pass" if beyond is None else "FAIL",
        max_abs=largest.max_abs,
        max_rel=largest.max_rel,
        where=(beyond or largest).place,
        first="" if beyond is None else beyond.name,
        limit="" if allowed is None else "identical" if allowed == 0 else f"{allowed:.0e} rel",
        note=note,
        differences=tuple(differences),
    )


def identical(name: str, left: np.ndarray, right: np.ndarray) -> Difference:
    """Compare arrays as `difference` does, with zero only where dtype, shape and every bit are the same.

    Args:
        name: of both arrays.
        left: an array of any shape.
        right: the array to compare with.
    """
    from parity.difference import difference

    values = difference(name, left, right)
    if left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes():
        return Difference(name=name, max_abs=0.0, max_rel=0.0, where=(), left=values.left, right=values.right)
    if values.max_abs > 0:
        return values
    return Difference(
        name=name,
        max_abs=float("inf"),
        max_rel=float("inf"),
        where=None,
        left=values.left,
        right=values.right,
        note=f"has other bits ({left.dtype} against {right.dtype})",
    )


def distributions(
    rung: int, what: str, dtype: str, left: np.ndarray, right: np.ndarray, differences: Sequence[Difference]
) -> Result:
    """Return a line that compares logits of 16-bit models as next-token distributions.

    Two tokens whose logits differ by no more than the rounding of 16 bits count as equally likely: either may be first.

    Args:
        rung: number of the rung.
        what: what was compared.
        dtype: precision of the twins.
        left: logits of one side, with the vocabulary as last axis.
        right: logits of the other, of the same shape.
        differences: between the two, reported beside the verdict.
    """
    one, other = (_log_softmax(x.astype(np.float64)) for x in (left, right))
    divergence = float(np.sum(np.exp(one) * (one - other), axis=-1).mean())
    second = np.take_along_axis(one, other.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    rounding = 2 * ROUNDING_16 * np.abs(left.astype(np.float64)).max()
    agreement = float(np.mean(one.max(axis=-1) - second <= rounding))
    ok = divergence <= MAX_DIVERGENCE and agreement >= MIN_AGREEMENT
    largest = worst(differences)
    return Result(
        rung=rung,
        what=what,
        dtype=dtype,
        verdict="pass" if ok else "FAIL",
        max_abs=largest.max_abs,
        max_rel=largest.max_rel,
        where=largest.place,
        first="" if ok else largest.name,
        limit=f"KL {MAX_DIVERGENCE:.0e}, top-1 {MIN_AGREEMENT:.0%}",
        note=f"KL {divergence:.1e}, top-1 agreement {agreement:.1%}",
        differences=tuple(differences),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
