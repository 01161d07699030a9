"""Rung 9: transformers' model with the same weights, and what has none."""

import re
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest

from parity.backends.base import Pair
from parity.check.rungs.base import Options
from parity.check.rungs.transformers import third_implementation


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": {"precision": "bfloat16"}}, "transformers' bfloat16 rounds the parameters too"),
        ({"model": {"position": "none"}}, "model.position: found 'none', a Llama has only 'rope'"),
        ({"model": {"dim": 13, "head_dim": 4}}, "model.dim: found 13"),
    ],
)
def test_what_has_no_llama_is_left_out_and_the_reason_told(changes: dict, reason: str, tiny_pair: Callable[..., Pair]):
    (line,) = third_implementation(tiny_pair(**changes), Options())
    assert line.verdict == "skipped"
    assert line.note.startswith(reason)


def test_without_transformers_the_rung_is_skipped(tiny_pair: Callable[..., Pair]):
    with mock.patch("importlib.util.find_spec", return_value=None):
        (line,) = third_implementation(tiny_pair(), Options())
    assert (line.verdict, line.note) == ("skipped", "transformers is not installed")


def test_logits_that_are_off_are_found_with_our_rotary_angles(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    (line,) = third_implementation(pair, Options())
    assert (line.verdict, line.limit) == ("pass", "1e-12 rel")
    narrow, own = (float(number) for number in re.findall(r"\d\.\de-\d+", line.note))
    assert 1e-9 < narrow < 1e-5
    assert 1e-9 < own < 1e-5
    logits = type(pair.reference).logits

    def faulty(self, tokens: np.ndarray) -> np.ndarray:
        return logits(self, tokens) * (1 + 2e-12)

    with mock.patch.object(type(pair.reference), "logits", faulty):
        (line,) = third_implementation(tiny_pair(), Options())
    assert (line.verdict, line.first) == ("FAIL", "logits")
