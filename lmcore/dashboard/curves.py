"""Curves of metrics: the x axis, smoothing, and fewer points than rows.

Smoothing comes before the selection of points, so that it does not depend on how many are drawn.
"""

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lmcore.dashboard.metrics import MetricsReader, Series

__all__ = ["AXES", "Axis", "Curve", "curve", "selected", "smoothed", "training_time"]

Axis: TypeAlias = Literal["step", "tokens", "time"]
AXES: tuple[Axis, ...] = ("step", "tokens", "time")
POINTS = 1000
"""Maximum number of points of a curve, apart from gaps."""


class Curve(NamedTuple):
    """Which curve of a run is asked for."""

    metric: str
    axis: Axis = "step"
    log_x: bool = False
    smoothing: float = 0.0
    """Weight of the past in the exponential moving average, from 0 (none) to below 1."""


def curve(reader: MetricsReader, asked: Curve) -> dict[str, Any]:
    """Return the points of a metric as plain values: `raw`, and `smooth` where smoothing is asked for.

    Each has `step`, `x` (steps, tokens, or seconds) and `y`, whose None is a gap: a value that was not finite.

    Args:
        reader: rows of the run.
        asked: metric, axis and smoothing.
    """
    steps, [(index, y), tokens, rate] = reader.series(asked.metric, "tokens", "tokens_per_second")
    x_all = _axis(asked.axis, steps, tokens, rate)
    known = np.isfinite(x_all)
    shown = known[index]
    index, y = index[shown], y[shown]
    x = x_all[index]
    if np.any(np.diff(x) < 0):
        order = np.argsort(x, kind="stable")
        index, x, y = index[order], x[order], y[order]
    lines = {"raw": y} | ({"smooth": smoothed(y, asked.smoothing)} if asked.smoothing > 0 else {})
    result: dict[str, Any] = {"rows": len(steps), "values": len(y), "without_axis": int(np.count_nonzero(~shown))}
    for name, line in lines.items():
        chosen = selected(x, line, POINTS, asked.log_x)
        result[name] = {"step": _plain(steps[index[chosen]]), "x": _plain(x[chosen]), "y": _plain(line[chosen])}
    return result


def _axis(axis: Axis, steps: Int64[np.ndarray, " N"], tokens: Series, rate: Series) -> Float64[np.ndarray, " N"]:
    """Return the x of each row, NaN where it has none."""
    if axis == "step":
        return steps.astype(np.float64)
    by_row = np.full((2, len(steps)), np.nan)
    for row, (index, values) in zip(by_row, (tokens, rate), strict=True):
        row[index] = values
    return by_row[0] if axis == "tokens" else training_time(by_row[0], by_row[1])


def training_time(tokens: Float64[np.ndarray, " N"], rate: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """Return the seconds of training up to each row, evaluation and sampling excluded: the sum of tokens / rate.

    Args:
        tokens: tokens up to each row; NaN where a row has none.
        rate: tokens per second since the row before; a row without takes that of the row before, else the row after.
    """
    good = np.flatnonzero(np.isfinite(rate) & (rate > 0))
    if not len(good):
        return np.full(len(tokens), np.nan)
    nearest = np.clip(np.searchsorted(good, np.arange(len(rate)), side="right") - 1, 0, None)
    known = np.isfinite(tokens)
    spent = np.zeros(len(tokens))
    spent[known] = np.diff(tokens[known], prepend=0.0) / rate[good[nearest[known]]]
    return np.where(known, np.cumsum(spent), np.nan)


def smoothed(y: Float64[np.ndarray, " N"], weight: float) -> Float64[np.ndarray, " N"]:
    """Return the exponential moving average, as TensorBoard has it: without bias to its start; NaN is left out.

    Args:
        y: values.
        weight: weight of the past, from 0 to below 1.
    """
    average, total, result = 0.0, 0.0, []
    for value in y.tolist():
        if math.isnan(value):
            result.append(value)
            continue
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        result.append(average / total)
    return np.array(result, dtype=np.float64)


def selected(
    x: Float64[np.ndarray, " N"], y: Float64[np.ndarray, " N"], points: int, log_x: bool = False
) -> Int64[np.ndarray, " M"]:
    """Choose the points to draw: the minimum and maximum of each of `points / 2` equal parts of the axis.

    The first and the last point stay, and one NaN of each part that has any, so that a gap is seen.

    Args:
        x: increasing positions.
        y: values.
        points: maximum number of points, apart from first, last and gaps.
        log_x: whether the axis is logarithmic, so that only positive positions are shown.

    Returns:
        Indices of the points, increasing.
    """
    candidates = np.flatnonzero(x > 0) if log_x else np.arange(len(x))
    if len(candidates) <= points:
        return candidates.astype(np.int64)
    place, value = x[candidates], y[candidates]
    if log_x:
        place = np.log(place)
    parts = points // 2
    span = place[-1] - place[0]
    bucket = np.minimum(((place - place[0]) * (parts / span if span > 0 else 0.0)).astype(np.int64), parts - 1)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    inverse = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(bucket)))
    low, high = (value == extreme.reduceat(value, starts)[inverse] for extreme in (np.fmin, np.fmax))
    chosen = [_first_in_each(mask, inverse) for mask in (low, high, np.isnan(value))]
    return candidates[np.unique(np.concatenate([*chosen, [0, len(bucket) - 1]]))].astype(np.int64)


def _first_in_each(mask: Bool[np.ndarray, " N"], part: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " M"]:
    """Return the first index in each part for which the mask is true; parts are increasing."""
    index = np.flatnonzero(mask)
    return index[np.diff(part[index], prepend=-1) > 0]


def _plain(values: np.ndarray) -> list[int | float | None]:
    """Return JSON's values: integers as such, others with 7 digits, None for NaN."""
    if values.dtype.kind == "i":
        return values.tolist()
    if np.all(np.isfinite(values)) and np.all(values == np.rint(values)) and np.all(np.abs(values) < 2**53):
        return values.astype(np.int64).tolist()
    return [None if math.isnan(value) else float(f"{value:.7g}") for value in values.tolist()]
