"""Rung 7: a training run, in step (`instep`) and with each twin by itself (`freerun`)."""

from collections.abc import Iterator

from parity.backends.base import Pair
from parity.check.result import Result
from parity.check.rungs.base import Options, training_batches
from parity.check.rungs.freerun import free_running, whole_schedule
from parity.check.rungs.instep import in_step

__all__ = ["trajectory"]


def trajectory(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 7: a run in step, with the reference's state loaded into the port every few steps, then both by themselves.

    The run passes through the whole schedule, from warmup to the last learning rate.
    """
    config, batches = whole_schedule(pair.config, options.steps), training_batches(pair, options.steps)
    yield from in_step(pair, config, batches)
    yield from free_running(pair, config, batches, options.draws)
