"""The loss of outputs depends on every real and complex value of them, and on no integer."""

import numpy as np
import pytest

from parity.ports.side import projected


def loss(**leaves: np.ndarray) -> float:
    return float(projected(leaves, np.asarray))


def test_a_single_scalar_is_the_loss():
    assert loss(output=np.float64(2.5)) == 2.5
    assert loss(output=np.float64(2.5), count=np.int64(7)) == 2.5


def test_every_value_counts_and_both_parts_of_complex_ones():
    plain = {"a": np.array([1.0, 2.0]), "b": np.array([1 + 2j])}
    for name, index, change in (("a", 0, 1e-3), ("a", 1, 1e-3), ("b", 0, 1e-3), ("b", 0, 1e-3j)):
        moved = {key: value.copy() for key, value in plain.items()}
        moved[name][index] += change
        assert abs(loss(**moved) - loss(**plain)) > 1e-5
    assert loss(**plain) == pytest.approx(loss(b=plain["b"], a=plain["a"]))
    assert loss(**plain, ids=np.arange(3), mask=np.array([True])) == loss(**plain)
