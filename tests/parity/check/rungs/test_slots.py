"""Rung 8, sequences in slots: equal twins pass, and what a slot can do wrong is found in it."""

from collections.abc import Callable
from unittest import mock

import numpy as np

from parity.backends.base import Pair
from parity.check.rungs import slots as rung
from parity.check.rungs.sampling import OPTIONS


def verdicts(pair: Pair) -> list[str]:
    return [line.verdict for line in rung.slots(pair)]


def test_sequences_that_join_and_leave_are_as_if_alone(tiny_pair: Callable[..., Pair]):
    lines = list(rung.slots(tiny_pair()))
    assert [line.verdict for line in lines] == ["pass"] * 4
    assert lines[2].what == "Other, 6 sequences in 3 slots against full forward"


def test_logits_of_another_slot_are_found(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    made = type(pair.port).slots

    def faulty(self, count: int, size: int):
        held = made(self, count, size)
        healthy = held.logits
        held.logits = lambda: np.roll(healthy(), 1, axis=0)
        return held

    with mock.patch.object(type(pair.port), "slots", faulty):
        assert verdicts(pair)[:3] == ["pass", "pass", "FAIL"]


def test_a_token_that_its_options_do_not_allow_is_found():
    options = OPTIONS["top_k 5"]
    logits = -np.arange(20.0)
    sequence = rung.Decoded(np.zeros(1, np.int32), options, np.array([0.1, 0.999], np.float32), [0, 4], [logits] * 2)
    assert rung._possible(sequence).tolist() == [1, 1]
    sequence.tokens = [0, 5]
    assert rung._possible(sequence).tolist() == [1, 0]
