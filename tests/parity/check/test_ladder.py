"""The ladder: its rungs in order, and where it stops."""

from collections.abc import Callable
from unittest import mock

import numpy as np

from parity.backends.base import Pair
from parity.check.ladder import RUNGS, climb


def test_the_rungs_are_numbered_from_the_bottom():
    assert [rung.number for rung in RUNGS] == list(range(12))
    assert len({rung.title for rung in RUNGS}) == len({rung.climb for rung in RUNGS}) == 12


def test_rungs_are_climbed_in_order_and_each_line_is_timed(tiny_pair: Callable[..., Pair]):
    lines = list(climb(tiny_pair(), [4, 2, 3]))
    assert [line.rung for line in lines] == sorted(line.rung for line in lines)
    assert {line.rung for line in lines} == {2, 3, 4}
    assert {line.verdict for line in lines} == {"pass"}
    assert min(line.seconds for line in lines) > 0


def test_the_first_failure_ends_the_climb_only_where_asked(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    logits = type(pair.port).logits

    def faulty(self, tokens: np.ndarray) -> np.ndarray:
        return logits(self, tokens) + 1e-6

    with mock.patch.object(type(pair.port), "logits", faulty):
        stopped, whole = (list(climb(pair, [3, 4], stop=stop)) for stop in (True, False))
    assert [line.verdict for line in stopped] == ["pass", "FAIL"]
    assert stopped[-1].first == "logits"
    assert len(whole) == 6, "the rest is compared too"
