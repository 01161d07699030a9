"""The processes of a run in JAX: `jax.distributed`, by gloo on a CPU and by NCCL between GPUs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlm.device import set_up_jax
from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.run.heartbeat import Heartbeat
from lmcore.run.processes import Alone, Launched, Lost, NotJoined, Processes, launched

__all__ = ["Group", "joined"]

LOST = 60
"""Seconds after which JAX itself ends the others of a process that is gone, and for which one that ends waits for
them; the heartbeat ends them before."""
BOARD = "lm"
"""Folder of the coordination service's keys."""
TRANSPORTS = ("Gloo", "NCCL", "coordination service")
"""What JAX's error names where another process is gone."""
CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables of a cluster's launcher that have the number of processes."""
TEXT = 4096
"""Maximum number of bytes of a text that is sent to all processes."""


class Group:
    """The processes of one run: a `lmcore.run.processes.Processes`."""

    def __init__(self, rank: int, count: int):
        self.rank, self.count = rank, count

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
def joined(config: Config) -> Iterator[Processes]:
    """Join the processes that the launcher started, until the end of the `with` statement.

    Where no variables of `torchrun` are set, JAX finds those of a cluster itself: SLURM's, Open MPI's, those of an
    indexed Kubernetes job and of TPU hosts.

    Raises:
        UserError: the other processes cannot be reached.
    """
    found, cluster = launched(), _cluster()
    if found is None and not cluster:
        yield Alone()
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    join = partial(jax.distributed.initialize, heartbeat_timeout_seconds=LOST, shutdown_timeout_seconds=LOST)
    try:
        if found is None:
            join()
        else:
            gpu = [found.local_rank] if found.local_count > 1 else None  # alone on its host, a process takes all GPUs
            join(f"{found.address}:{found.port}", found.count, found.rank, gpu)
    except (RuntimeError, ValueError) as error:
        raise _not_joined(found, cluster, error) from error
    # Before the first message, which makes the devices; a cluster that says no number has no mesh of CPU devices.
    set_up_jax(config, found.count if found else int(os.environ[cluster]) if cluster in CLUSTERS else 1)
    group = Group(found.rank, found.count) if found else Group(jax.process_index(), jax.process_count())
    board = _Board.of_process()
    heartbeat = Heartbeat(group.rank, group.count, board, board) if board else None
    try:
        yield group if group.count > 1 else Alone()
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the latter where a call computes at once
        if any(word in str(error) for word in TRANSPORTS):
            raise Lost(group.rank, error, heartbeat.missing() if heartbeat else None) from error
        raise
    finally:
        if heartbeat:
            heartbeat.stop()
    jax.distributed.shutdown()  # not after an error, which is to be said first: at exit, JAX waits for the others


class _Board:
    """Texts in JAX's coordination service: a `lmcore.run.heartbeat.Board`."""

    def __init__(self, client: Any):
        self.client = client

    @classmethod
    def of_process(cls) -> "_Board | None":
        """Return the board of this run; None where a version of JAX keeps it elsewhere, since it is private."""
        try:
            from jax._src.distributed import global_state
        except ImportError:
            return None
        return cls(global_state.client) if hasattr(global_state.client, "key_value_dir_get") else None

    def set(self, key: str, text: str) -> None:
        """Set or replace a text."""
        self.client.key_value_set(f"{BOARD}/{key}", text, allow_overwrite=True)

    def read(self, keys: Sequence[str]) -> list[str]:
        """Return texts, empty where none is set."""
        texts = {key.removeprefix(f"{BOARD}/"): text for key, text in self.client.key_value_dir_get(BOARD)}
        return [texts.get(key, "") for key in keys]


def _not_joined(found: Launched | None, cluster: str, error: Exception) -> UserError:
    return found.unreachable(error) if found else NotJoined(f"{cluster}: JAX cannot join the run it names ({error})")


def _cluster() -> str:
    """Return the variable by which a cluster says that it has started several processes, or an empty string."""
    several = [name for name in CLUSTERS if int(os.environ.get(name) or "1") > 1]
    several += ["TPU_WORKER_HOSTNAMES"] * ("," in os.environ.get("TPU_WORKER_HOSTNAMES", ""))
    several += ["JOB_COMPLETION_INDEX"] * ({"JOB_COMPLETION_INDEX", "KUBERNETES_SERVICE_HOST"} <= os.environ.keys())
    return next(iter(several), "")
