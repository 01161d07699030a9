"""`python -m parity.check.mesh.worker FOLDER`: one process of a check across meshes, started by `jobs.launch`."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmcore.data.batches import Batches
from lmcore.errors import command
from lmcore.optim.schedule import learning_rate
from lmcore.run.engine import evaluate
from lmcore.run.processes import Processes, said_once
from parity.check.mesh.faults import planted
from parity.check.mesh.jobs import STEPS, Job, Request

__all__ = ["main"]

WINDOWS = 3
"""Sequences of the evaluation, whose last batch is thus padded."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Do the jobs of a request, together with the other processes."""
    [folder] = sys.argv[1:] if argv is None else argv
    request = Request.load(Path(folder))
    engine_class = importlib.import_module(f"{request.package}.engine").Engine
    with said_once(), planted(request.fault), engine_class.joined(request.jobs[0].config) as processes:
        for job in request.jobs:
            _run(request, job, engine_class(job.config, processes), processes)
    return 0


def _run(request: Request, job: Job, engine: Any, processes: Processes) -> None:
    """Train from the job's start to its end; save the first, second and last state, and the metrics."""
    outcome, train = job.outcome(engine.framework), job.config.train

    def save(step: int) -> None:
        folder = outcome.checkpoint(step).state
        if processes.rank == 0:
            folder.parent.mkdir(parents=True, exist_ok=True)
        processes.largest(0)  # the folder is there
        engine.save(folder)()
        processes.largest(0)  # all have written

    if job.restore is None:
        engine.init()
    else:
        engine.restore(job.restore)
    save(job.start)
    batches = Batches(
        request.tokens,
        seq_len=train.seq_len,
        batch_size=train.batch_size,
        seed=train.seed,
        shard=engine.shard,
        micro_batches=train.grad_accum,
    )
    metrics: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for step in range(job.start, STEPS):
        values = engine.train_step(batches.batch(step), learning_rate(job.config, step))
        for name, curve in metrics.items():
            curve.append(float(values[name]))
        if step in (job.start, STEPS - 1):
            save(step + 1)
    metrics["valid_loss"] = [evaluate(engine, request.tokens, job.config, WINDOWS)["valid_loss"]]
    if processes.rank == 0:
        outcome.write(metrics)


if __name__ == "__main__":
    sys.exit(main())
