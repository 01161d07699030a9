"""Rung 10: a restored run gives the bits of the unbroken one, and a lost moment shows."""

from collections.abc import Callable
from itertools import islice
from unittest import mock

import numpy as np
import pytest

import torchlm.engine
from parity.arrays import Arrays
from parity.backends.base import Pair, Step
from parity.check.result import Result
from parity.check.rungs.base import Options
from parity.check.rungs.restart import restart
from parity.check.selftest.faults.run import drops_moments


def from_torch(pair: Pair) -> list[Result]:
    """The lines of checkpoints that the reference wrote; no other framework's can be read."""
    return list(islice(restart(pair, Options()), 3))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_run_and_a_converted_one_go_on(name: str, tiny_pair: Callable[..., Pair]):
    lines = from_torch(tiny_pair(optim={"name": name}))
    assert [(line.what, line.verdict) for line in lines] == [
        ("torch, restored, against unbroken", "pass"),
        ("torch → Other, converted: gradients", "pass"),
        ("torch → Other, converted: update", "pass"),
    ]


def test_moments_that_were_not_saved_show_in_the_next_update(tiny_pair: Callable[..., Pair]):
    with mock.patch.object(torchlm.engine, "save_state", drops_moments(torchlm.engine.save_state)):
        restored, gradients, update = from_torch(tiny_pair())
    assert (restored.verdict, gradients.verdict, update.verdict) == ("FAIL", "pass", "FAIL")
    assert restored.first.endswith("(step 3)")
    assert any("mean of" in d.name and d.max_abs > 0 for d in update.differences)


def test_an_update_that_is_off_after_the_conversion_is_found(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    step = type(pair.port).step

    def faulty(self, batch: np.ndarray, lr: float, grads: Arrays | None = None) -> Step:
        return step(self, batch, lr * (1 + 1e-9), grads)

    with mock.patch.object(type(pair.port), "step", faulty):
        restored, gradients, update = from_torch(pair)
    assert (restored.verdict, gradients.verdict, update.verdict) == ("pass", "pass", "FAIL")
