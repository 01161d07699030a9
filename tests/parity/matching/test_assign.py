"""The assignment is the best of all orders, and leaves out what has no good partner."""

from itertools import permutations

import numpy as np
import pytest

from parity.matching.assign import assign, components_of


@pytest.mark.parametrize("seed", range(5))
def test_no_other_order_has_a_larger_sum(seed: int):
    scores = np.random.default_rng(seed).uniform(0, 1, (5, 6))
    found = assign(scores, np.ones((5, 6), bool), -1.0)
    best = max(sum(scores[i, k] for i, k in enumerate(order)) for order in permutations(range(6), 5))
    assert sum(scores[i, k] for i, k in found.items()) == pytest.approx(best)
    assert len(set(found.values())) == 5


def test_a_pair_below_the_minimum_or_impossible_is_left_out():
    scores = np.array([[0.9, 0.8], [0.7, -2.0]])
    assert assign(scores, np.ones((2, 2), bool), -1.0) == {0: 1, 1: 0}
    assert assign(scores, np.array([[True, False], [False, True]]), -1.0) == {0: 0}
    assert assign(scores, np.zeros((2, 2), bool), -1.0) == {}


def test_more_rows_than_columns_keep_the_best():
    assert assign(np.array([[0.1], [0.9], [0.5]]), np.ones((3, 1), bool), 0.0) == {1: 0}


def test_connected_parts_are_apart():
    possible = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0]], bool)
    assert [(rows.tolist(), columns.tolist()) for rows, columns in components_of(possible)] == [
        ([0, 2], [0]),
        ([1], [1, 2]),
    ]
