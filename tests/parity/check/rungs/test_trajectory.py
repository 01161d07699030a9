"""Rung 7: a training run, in step and with each twin by itself."""

from collections.abc import Callable

from parity.backends.base import Pair
from parity.check.rungs.base import Options
from parity.check.rungs.trajectory import trajectory


def test_a_run_is_compared_in_step_and_by_its_drift(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    *in_step, free = trajectory(pair, Options(steps=12))
    assert {line.verdict for line in (*in_step, free)} == {"pass"}
    assert [len(line.differences) for line in in_step] == [12] * len(in_step) == [12] * 5, "one for each step"
    lengths = {name: len(values) for name, values in free.curves.items()}
    assert lengths == dict.fromkeys(("torch", "other", "floor", "highest"), 12)
    assert max(free.curves["floor"]) > 0
    losses = pair.answers["other"]
    losses |= {key: losses[key] + 1.0 for key in losses if key[:2] == ("free-running", 12)}
    *_, free = trajectory(pair, Options(steps=12))
    assert (free.verdict, free.first) == ("FAIL", "loss at step 1")
