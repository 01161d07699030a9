"""Rung 7, second part: how large a drift is, and which drift is too large."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lmcore.optim.schedule import learning_rate
from parity.backends.base import Pair
from parity.check.rungs.freerun import MIN_SPREAD, drift, prediction_bound, whole_schedule


def test_the_bound_of_a_drift_is_exceeded_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(-3, 0.4, size=(20_000, 7))
    beyond = [one[0] > prediction_bound(list(one[1:])) for one in draws]
    assert 8 <= sum(beyond) <= 36, "20 of 20,000 expected"


def test_equal_draws_still_leave_room():
    quantile = 22.327  # of Student's t with two degrees of freedom, at 0.999
    assert prediction_bound([-3.0] * 3) == pytest.approx(-3 + quantile * MIN_SPREAD * np.sqrt(4 / 3), abs=1e-3)
    assert prediction_bound([-4.0, -3.0, -2.0]) == pytest.approx(-3 + quantile * np.sqrt(4 / 3), abs=1e-2)


def test_a_drift_is_the_mean_logarithm_without_the_beginning():
    one = np.full(8, 4.0)
    other = one + np.array([1.0, 1.0, *(1e-2, 1e-4) * 3])
    assert drift(one, other, "float32") == pytest.approx(-3), "the first quarter is left out"
    assert drift(one, one, "float32") == pytest.approx(np.log10(4e-5)), "no less than the tolerance of a step"
    assert drift(one, one, "bfloat16") == pytest.approx(-3)
    assert np.isnan(drift(one, one * np.nan, "float32"))


def test_a_short_run_passes_through_the_whole_schedule(tiny_pair: Callable[..., Pair]):
    config = tiny_pair(train={"steps": 1000}, optim={"warmup_steps": 100}).config
    short = whole_schedule(config, 20)
    assert (short.train.steps, short.optim.warmup_steps) == (20, 2)
    assert learning_rate(short, 2) == pytest.approx(config.optim.lr)
    assert learning_rate(short, 19) == pytest.approx(learning_rate(config, 999), rel=0.1)
    without = replace(config, optim=replace(config.optim, warmup_steps=0))
    assert whole_schedule(without, 20).optim.warmup_steps == 1
    long = replace(config, optim=replace(config.optim, warmup_steps=999))
    assert whole_schedule(long, 3).optim.warmup_steps == 2, "a step after it is left"
