"""Rung 7, first part: every step of a schedule is compared, and the one that is off is named."""

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np

from parity.arrays import Arrays
from parity.backends.base import Pair, Step
from parity.check.rungs.base import training_batches
from parity.check.rungs.freerun import whole_schedule
from parity.check.rungs.instep import STRIDE, in_step


def test_every_step_of_a_schedule_is_felt(tiny_pair: Callable[..., Pair]):
    """A learning rate that is 1e-6 off in a single late step shows, in that step."""
    pair = tiny_pair()
    step, calls = type(pair.port).step, []

    def faulty(self, batch: np.ndarray, lr: float, grads: Arrays | None = None) -> Step:
        calls.append(lr)
        return step(self, batch, lr * (1 + 1e-6 * (len(calls) == 9)), grads)

    with mock.patch.object(type(pair.port), "step", faulty):
        lines = {line.what.partition(": ")[2]: line for line in in_step(pair, *run(pair, 12))}
    assert lines["updates"].verdict == "FAIL"
    assert lines["updates"].first.endswith("(step 9)")
    assert lines["first moment m"].verdict == "pass"


def run(pair: Pair, steps: int) -> tuple:
    return whole_schedule(pair.config, steps), training_batches(pair, steps)


def test_the_port_is_loaded_with_the_references_state_every_few_steps(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    load, loaded = type(pair.port).load, []

    def recorded(self, params: Arrays, moments: object = None, step: int = 0) -> None:
        loaded.append(step)
        load(self, params, moments, step)

    with mock.patch.object(type(pair.port), "load", recorded):
        lines = list(in_step(pair, *run(pair, 2 * STRIDE + 1)))
    assert loaded == [0, STRIDE, 2 * STRIDE]
    assert {line.verdict for line in lines} == {"pass"}


def test_a_loss_that_is_off_does_not_reach_the_updates(tiny_pair: Callable[..., Pair]):
    """The port updates with the reference's gradients, so only what it computes itself differs."""
    pair = tiny_pair(optim={"name": "lion"})
    step = type(pair.port).step

    def faulty(self, batch: np.ndarray, lr: float, grads: Arrays | None = None) -> Step:
        result = step(self, batch, lr, grads)
        return replace(result, loss=result.loss * (1 + 1e-9), grads={n: 2 * g for n, g in result.grads.items()})

    with mock.patch.object(type(pair.port), "step", faulty):
        lines = {line.what.partition(": ")[2]: line.verdict for line in in_step(pair, *run(pair, 3))}
    assert lines == {
        "losses and norms": "FAIL",
        "gradients": "FAIL",
        "updates": "pass",
        "first moment m": "pass",
    }
