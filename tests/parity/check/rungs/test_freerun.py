"""Rung 7, second part: the schedule of a short run."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lmcore.optim.schedule import learning_rate
from parity.backends.base import Pair
from parity.check.rungs.freerun import whole_schedule


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
