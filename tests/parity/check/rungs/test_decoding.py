"""Rung 8: the cache against the full forward pass, decoded text, and the end of the context."""

from collections.abc import Callable
from itertools import islice
from unittest import mock

import numpy as np

from lmcore.config import SampleConfig
from parity.backends.base import Pair, generate
from parity.check.rungs import decoding as rung
from parity.check.rungs.base import Options
from parity.check.selftest.faults.decoding import forgets_newer


def test_a_cache_that_is_off_fails_where_it_is_read(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    decode = type(pair.port).decode

    def faulty(self, *arguments: object) -> np.ndarray:
        logits = decode(self, *arguments)
        logits[:, -1] += 1e-9
        return logits

    assert [line.verdict for line in islice(rung.decoding(tiny_pair(), Options()), 3)] == ["pass"] * 3
    with mock.patch.object(type(pair.port), "decode", faulty):
        lines = list(islice(rung.decoding(pair, Options()), 3))
    assert [(line.what, line.verdict) for line in lines] == [
        ("torch, cache against full forward", "pass"),
        ("Other, cache against full forward", "FAIL"),
        ("torch against Other, from the cache", "FAIL"),
    ]


def test_text_that_rounding_explains_goes_on_from_the_references_choice(tiny_pair: Callable[..., Pair]):
    pair, options = tiny_pair(), SampleConfig(temperature=0.0, max_tokens=3)
    rows = pair.rows(2, 9)
    prompts = [[int(token) for token in rows[0, :4]], [int(rows[1, 0])]]
    ids, _ = (generate(pair.loaded(twin), prompts, options, pair.context) for twin in pair)
    other = ids.copy()
    other[1, 1] = (ids[1, 1] + 1) % 37
    for error, verdict in ((1e3, "pass"), (0.0, "FAIL")):
        pair.answers = {"torch": {"text": ids}, "other": {"text": other}}
        line = rung._decoded_text(pair, "text", options, rows, error)
        assert line.verdict == verdict, "only an error as large as the logits explains another token"
        assert ("row 1, token 1: two logits differ by" in line.note) == (verdict == "pass")
    assert line.note == "row 1 differs from token 1 on"


def test_a_context_that_forgets_its_newer_half_is_found(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair(train={"seq_len": 7}, model={"max_seq_len": 8})
    rows = pair.rows(2, 8)
    healthy = rung._sliding(pair, pair.port, rows, 0.0)
    assert (healthy.verdict, healthy.what) == ("pass", "Other, 24 greedy tokens in a context of 8")
    with mock.patch.object(rung, "write_tokens", forgets_newer(rung.write_tokens)):
        line = rung._sliding(pair, pair.port, rows, 0.0)
    assert line.verdict == "FAIL"
    assert "in window 1" in line.first


def test_a_sequence_ends_before_any_of_its_stop_tokens(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    rows = pair.rows(2, 9)
    assert rung._stopping(pair, rows).verdict == "pass"
