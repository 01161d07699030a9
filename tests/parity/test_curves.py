"""Training curves: how large a drift is, and which drift is too large."""

import numpy as np
import pytest

from parity.curves import MIN_SPREAD, drift, prediction_bound


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
