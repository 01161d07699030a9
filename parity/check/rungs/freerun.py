"""Rung 7, second part: both twins train by themselves, and drift no further from each other than each from itself."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from lmcore.config import Config
from parity.arrays import moved_by_one_ulp
from parity.backends.base import Pair, Twin, train
from parity.check.result import Result
from parity.curves import judge_curves

__all__ = ["free_running", "whole_schedule"]


def whole_schedule(config: Config, steps: int) -> Config:
    """Return the config of a run of `steps` that passes through the whole schedule, with warmup in proportion."""
    warmup = round((config.optim.warmup_steps or 0) * steps / config.train.steps)
    optim = replace(config.optim, warmup_steps=min(max(1, warmup), steps - 1))
    return replace(config, optim=optim, train=replace(config.train, steps=steps))


def free_running(pair: Pair, config: Config, batches: Sequence[np.ndarray], draws: int) -> Iterator[Result]:
    """Compare the pair's drift with each twin's own.

    Args:
        pair: both twins.
        config: of the run; gives its schedule and length.
        batches: token ids of each step, B T1 each.
        draws: number of runs of each twin from moved weights.
    """
    key = "free-running", len(batches)
    losses = pair.each(key, lambda twin: train(twin, config, pair.start, batches))
    own = []
    for twin, unmoved in zip(pair, losses, strict=True):
        for draw in range(draws):
            moved = pair.ask(twin, (*key, draw), partial(_moved_run, pair, config, batches, draw))
            own.append((moved, unmoved))
    curves = {twin.backend.framework: values for twin, values in zip(pair, losses, strict=True)}
    yield judge_curves("free-running", curves, own, pair.dtype)


def _moved_run(pair: Pair, config: Config, batches: Sequence[np.ndarray], draw: int, twin: Twin) -> np.ndarray:
    """Return the losses of a twin's run from weights moved by one ulp."""
    return train(twin, config, moved_by_one_ulp(pair.start, draw, pair.dtype), batches)
