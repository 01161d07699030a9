"""The processes of a run in JAX: `jax.distributed`, by gloo on a CPU and by NCCL between GPUs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmcore.config import TrainConfig
from lmcore.run.processes import Alone, Launched, Lost, Processes, launched

__all__ = ["Group", "joined"]

LOST = 30
"""Seconds after which a process that is gone ends the others, and for which one that ends waits for them."""
TRANSPORTS = ("Gloo", "NCCL", "coordination service")
"""What JAX's error names where another process is gone."""
TEXT = 4096
"""Maximum number of bytes of a text that is sent to all processes."""


class Group:
    """The processes of one run: a `lmcore.run.processes.Processes`."""

    def __init__(self, found: Launched):
        self.rank, self.count = found.rank, found.count

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes, in float64."""
        halves = np.array(values, np.float64).view(np.uint32)  # without x64, JAX has no float64
        gathered = np.asarray(multihost_utils.process_allgather(halves)).reshape(self.count, -1)
        return gathered.view(np.float64).sum(axis=0).tolist()

    def largest(self, value: int) -> int:
        """Return the largest of an integer over all processes."""
        return int(np.max(multihost_utils.process_allgather(np.int32(value))))

    def broadcast(self, text: str) -> str:
        """Return the text of process 0."""
        padded = np.zeros(TEXT, np.uint8)
        padded[: len(text.encode())] = np.frombuffer(text.encode(), np.uint8)
        return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0").decode()


@contextmanager
def joined(train: TrainConfig) -> Iterator[Processes]:
    """Join the processes that the launcher started, until the end of the `with` statement.

    Raises:
        UserError: the other processes cannot be reached.
    """
    found = launched()
    if found is None:
        yield Alone()
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = f"{found.address}:{found.port}"
    gpu = [found.local_rank] if found.local_count > 1 else None  # a process alone on its host takes all its GPUs
    try:
        jax.distributed.initialize(
            where, found.count, found.rank, gpu, heartbeat_timeout_seconds=LOST, shutdown_timeout_seconds=LOST
        )
    except RuntimeError as error:
        raise found.unreachable(error) from error
    try:
        yield Group(found)
    except jax.errors.JaxRuntimeError as error:
        if any(word in str(error) for word in TRANSPORTS):
            raise Lost(found.rank, error) from error
        raise
    jax.distributed.shutdown()  # not after an error, which is to be said first: at exit, JAX waits for the others
