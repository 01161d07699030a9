"""The ladder: twelve rungs, each a comparison of both twins on the same inputs, from batches up to training runs.

A rung yields a line for each comparison. The first rungs are the narrowest, so that the first line which fails names
the cause: its consequences fail further up. `RUNGS` lists the rungs, with the file of each in `rungs`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from parity.backends.base import Pair
from parity.check.result import Result
from parity.check.rungs import decoding, execution, forward, inputs, repeat, restart, trajectory, update, witnesses
from parity.check.rungs.base import Options

__all__ = ["RUNGS", "Rung", "climb"]


@dataclass(frozen=True)
class Rung:
    """One rung: its number, its title, and the function that yields its lines."""

    number: int
    title: str
    climb: Callable[[Pair, Options], Iterable[Result]]


def climb(
    pair: Pair, rungs: Iterable[int] | None = None, options: Options | None = None, stop: bool = False
) -> Iterator[Result]:
    """Climb the rungs in order; yield each line of the table as it is computed.

    Args:
        pair: both twins.
        rungs: numbers of the rungs to climb; None climbs all.
        options: lengths of the runs.
        stop: whether to stop at the first line that fails.
    """
    wanted = [rung for rung in RUNGS if rungs is None or rung.number in rungs]
    for rung in wanted:
        begin = time.perf_counter()
        for result in rung.climb(pair, options or Options()):
            yield replace(result, seconds=time.perf_counter() - begin)
            if stop and not result.ok:
                return
            begin = time.perf_counter()


RUNGS = (
    Rung(0, "each twin against itself", repeat.repeat),
    Rung(1, "batches and token ids", inputs.batches),
    Rung(2, "weights there and back", inputs.weights),
    Rung(3, "activations, layer by layer", forward.activations),
    Rung(4, "logits and loss", forward.outputs),
    Rung(5, "gradients", update.gradients),
    Rung(6, "optimizer update", update.updates),
    Rung(7, "training trajectory", trajectory.trajectory),
    Rung(8, "cached decoding", decoding.decoding),
    Rung(9, "a third implementation", witnesses.further_implementations),
    Rung(10, "save, restore, go on", restart.restart),
    Rung(11, "ways of computing", execution.execution),
)
