"""Rungs 5 and 6: a gradient that is off is named, and an update that is off from the same gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np

from parity.arrays import Arrays
from parity.backends.base import Pair, Step
from parity.check.rungs.base import Options
from parity.check.rungs.update import gradients, updates


@contextmanager
def stepping(pair: Pair, change: Callable[[Step], Step]) -> Iterator[None]:
    """Every step of the port with another result."""
    step = type(pair.port).step

    def faulty(self, batch: np.ndarray, lr: float, grads: Arrays | None = None) -> Step:
        return change(step(self, batch, lr, grads))

    with mock.patch.object(type(pair.port), "step", faulty):
        yield


def test_one_gradient_that_is_off_is_named(tiny_pair: Callable[..., Pair]):
    pair, name = tiny_pair(), "layers.0.mlp.up_proj.kernel"
    assert [line.verdict for line in gradients(pair, Options())] == ["pass"] * 3
    with stepping(pair, lambda step: replace(step, grads=step.grads | {name: step.grads[name] * (1 + 1e-9)})):
        loss, line, norm = gradients(tiny_pair(), Options())
    assert (loss.verdict, line.verdict, norm.verdict) == ("pass", "FAIL", "pass")
    assert line.first == name
    assert line.what == f"gradients of {len(pair.start)} parameters"


def test_gradients_are_clipped_in_the_first_update_and_not_in_the_second(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    assert {line.verdict for line in updates(pair, Options())} == {"pass"}
    first, second = pair.answers["torch"]["updates"]
    np.testing.assert_allclose([first.grad_norm, second.grad_norm], [2 * 0.7, 0.5 * 0.7], rtol=1e-12)


def test_a_moment_and_a_parameter_that_are_off_fail_on_their_own_lines(tiny_pair: Callable[..., Pair]):
    pair, name = tiny_pair(), "norm.weight"

    def wrong_moment(step: Step) -> Step:
        square = step.moments["square"] | {name: step.moments["square"][name] * (1 + 1e-9)}
        return replace(step, moments=step.moments | {"square": square})

    with stepping(pair, wrong_moment):
        lines = list(updates(pair, Options()))
    assert [line.what for line in lines if not line.ok] == ["second moment v, 2 updates"]
    assert next(line.first for line in lines if not line.ok) == "norm.weight (update 1)"
    with stepping(pair, lambda step: replace(step, params=step.params | {name: step.params[name] + 1e-9})):
        lines = list(updates(tiny_pair(), Options()))
    assert [line.what for line in lines if not line.ok] == ["parameters, 2 updates"]


def test_the_noise_floor_stands_beside_gradients_without_a_tolerance(tiny_pair: Callable[..., Pair]):
    _, line, _ = gradients(tiny_pair(train={"precision": "bfloat16"}), Options())
    assert line.verdict == "reported"
    assert 1e-4 < float(line.note.removeprefix("noise floor ")) < 1
