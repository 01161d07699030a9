"""Rungs 1 and 2: ids that a twin receives late, windows read twice, weights that are a bit off."""

from collections.abc import Callable
from unittest import mock

import numpy as np

from lmcore.data.batches import Batches
from parity.arrays import moved_by_one_ulp
from parity.backends.base import Pair
from parity.check.rungs.base import Options
from parity.check.rungs.inputs import batches, weights
from parity.check.selftest.faults.run import windows_twice


def test_the_ids_of_each_twin_are_those_that_were_drawn(tiny_pair: Callable[..., Pair]):
    received = type(tiny_pair().port).received
    ids, epochs = batches(tiny_pair(), Options())
    assert (ids.verdict, epochs.verdict) == ("pass", "pass")
    with mock.patch.object(
        type(tiny_pair().port), "received", lambda self, batch: np.roll(received(self, batch), -1, -1)
    ):
        ids, epochs = batches(tiny_pair(), Options())
    assert (ids.verdict, ids.first, epochs.verdict) == ("FAIL", "batch 0 in Other", "pass")


def test_a_window_that_is_read_twice_is_found_by_the_tokens_of_an_epoch(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    with mock.patch.object(Batches, "_starts", windows_twice(Batches._starts)):
        ids, epochs = batches(pair, Options())
    assert ids.verdict == "pass", "both twins receive what was drawn"
    assert (epochs.verdict, epochs.first) == ("FAIL", "tokens read in epoch 0")
    assert epochs.differences[0].left - epochs.differences[0].right == pair.config.train.seq_len


def test_weights_that_are_one_ulp_off_are_not_the_same(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    assert [line.verdict for line in weights(pair, Options())] == ["pass"] * 2
    params = type(pair.port).params
    with mock.patch.object(type(pair.port), "params", lambda self: moved_by_one_ulp(params(self), 0)):
        *_, line = weights(tiny_pair(), Options())
    assert (line.verdict, line.first) == ("FAIL", "embed_tokens.weight (Other)")


def test_fresh_twins_start_from_the_same_weights(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    fresh = Pair(pair.reference, pair.port, pair.config, pair.reference.initial(), pair.tokens, fresh=True)
    line = next(iter(weights(fresh, Options())))
    assert (line.what, line.verdict) == ("initial weights of each twin", "pass")
    initial = type(pair.port).initial
    with mock.patch.object(type(pair.port), "initial", lambda self: moved_by_one_ulp(initial(self), 0)):
        line = next(iter(weights(Pair(*fresh, pair.config, fresh.start, pair.tokens, fresh=True), Options())))
    assert line.verdict == "FAIL"
