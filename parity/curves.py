"""Two training curves, and what rounding alone makes of each: they may differ by no more than either from itself.

Training amplifies rounding errors, so two correct implementations diverge. How far is normal is measured: each side
trains again from the same weights moved by one unit in the last place (ulp), several times. The size of a drift is one
number, the mean over the run of the logarithm of the loss difference, since it grows exponentially: its logarithm is
what varies evenly from draw to draw. The pair's number must lie below the one-sided Student prediction bound of the
draws' numbers, which a further draw from the same normal distribution exceeds with probability FALSE_ALARMS.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from parity.check.result import MAX_DIVERGENCE, Result
from parity.difference import difference, tolerance

__all__ = ["FALSE_ALARMS", "drift", "judge_curves", "prediction_bound"]

FALSE_ALARMS = 1e-3
"""Probability that the bound is exceeded by one more draw."""
MIN_SPREAD = 0.1
"""Minimum standard deviation of a drift, in powers of ten."""
APART = 10.0
"""How many times more than at any step before does a loss differ that is named as the first divergent one."""
SKIPPED = 0.25
"""Fraction of the run that is left out at its beginning, while the drift is still the size of single roundings."""


def drift(one: np.ndarray, other: np.ndarray, dtype: str) -> float:
    """Return the mean over the run of log10 |difference of losses|, each no less than the tolerance of a single step.

    Args:
        one: losses of one run, one per step, in nats.
        other: losses of another run.
        dtype: precision of both runs.
    """
    later = slice(int(SKIPPED * len(one)), None)
    step_tolerance = tolerance("logits", dtype)
    single = np.full_like(one, MAX_DIVERGENCE) if step_tolerance is None else step_tolerance * np.abs(one)
    return float(np.log10(np.maximum(np.abs(one - other), single)[later]).mean())


def prediction_bound(draws: Sequence[float]) -> float:
    """Return the bound that one more draw from the same normal distribution exceeds with probability FALSE_ALARMS.

    The standard deviation is at least MIN_SPREAD: where nothing grows beyond a single step's tolerance, all
    draws are equal. Source: the prediction interval of a normal sample, mean + t · s · √(1 + 1/n), t of n − 1
    degrees of freedom.
    """
    from scipy.stats import t

    count = len(draws)
    quantile = float(t.ppf(1 - FALSE_ALARMS, count - 1))
    spread = max(MIN_SPREAD, float(np.std(draws, ddof=1)))
    return float(np.mean(draws) + quantile * spread * np.sqrt(1 + 1 / count))


def judge_curves(
    what: str, losses: Mapping[str, np.ndarray], own: Sequence[tuple[np.ndarray, np.ndarray]], dtype: str
) -> Result:
    """Return the line of two curves, held against what each side's own curve changes by.

    Args:
        what: name of the comparison.
        losses: framework, the reference first -> losses of its run, one per step.
        own: curves of a run from moved weights, each with that of the unmoved run.
        dtype: precision of all runs.
    """
    reference, port = losses.values()
    sizes = [drift(one, other, dtype) for one, other in own]
    size, bound = drift(reference, port, dtype), prediction_bound(sizes)
    largest = difference("loss at step", reference, port)
    ok = size <= bound  # NaN is not
    bands = np.abs([one - other for one, other in own])
    first = "" if ok else _first_divergent(reference, port, bands, dtype)
    curves = {**losses, "floor": np.median(bands, axis=0), "highest": np.max(bands, axis=0)}
    return Result(
        rung=7,
        what=f"{what}, {len(reference)} steps, loss {reference[0]:.3f} → {reference[-1]:.3f}",
        dtype=dtype,
        verdict="pass" if ok else "FAIL",
        max_abs=largest.max_abs,
        max_rel=largest.max_rel,
        where=first or largest.place,
        first=first,
        limit=f"{10**bound:.1e} mean drift",
        note=f"mean drift {10**size:.1e}; {len(own)} moves by one ulp on either side: {10 ** np.mean(sizes):.1e}, "
        f"up to {10 ** np.max(sizes):.1e}; false alarms: 1 in {1 / FALSE_ALARMS:,.0f}",
        differences=(largest,),
        curves={name: [float(x) for x in values] for name, values in curves.items()},
    )


def _first_divergent(reference: np.ndarray, port: np.ndarray, bands: np.ndarray, dtype: str) -> str:
    """Return the name of the first step whose losses differ by more than rounding, counted from one.

    Args:
        reference: losses of the reference.
        port: losses of the port.
        bands: |difference| of each side's own runs and step, runs × steps.
        dtype: precision of all runs.
    """
    single = tolerance("logits", dtype) or MAX_DIVERGENCE
    normal = APART * np.maximum.accumulate(np.maximum(bands.max(axis=0), single * np.abs(reference)))
    beyond = ~(np.abs(reference - port) <= normal)  # NaN is
    return f"loss at step {np.argmax(beyond) + 1}" if beyond.any() else "loss of all steps"
