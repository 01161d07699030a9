"""The processes of a run in torch: `torch.distributed`, by gloo on a CPU and by NCCL between GPUs."""

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from lmcore.config import Config
from lmcore.run.heartbeat import SILENCE, Heartbeat
from lmcore.run.processes import Alone, Lost, Processes, launched

__all__ = ["Group", "joined", "sum_over_processes"]

BUCKET = 2**22
"""Number of values that are summed over the processes at once."""
POLL = 0.05
"""Seconds between two questions whether another process has finished."""
PATIENCE = 10.0
"""Maximum number of seconds for which the end of the process groups is waited for."""
TRANSPORTS = ("gloo", "NCCL", "Connection", "Broken pipe", "Socket")
"""What torch's error names where another process is gone."""


class Group:
    """The processes of one run: a `lmcore.run.processes.Processes`.

    Args:
        rank: number of this process.
        count: number of processes.
        connect: opens a connection to the store of process 0; a thread that waits for an answer needs its own.
    """

    def __init__(self, rank: int, count: int, connect: Callable[[], dist.Store] | None = None):
        self.rank, self.count = rank, count
        self.store = connect() if connect else None
        self.finishing = 0
        self.ended = threading.Event()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def largest(self, value: int) -> int:
        """Return the largest of an integer over all processes."""
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def broadcast(self, text: str) -> str:
        """Return the text of process 0."""
        texts = [text]
        dist.broadcast_object_list(texts)
        return texts[0]

    def together(self, action: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does something in a thread of every process, and in process 0 waits for all.

        All processes call this at the same time, but none of them that function: it speaks through the store.
        """
        self.finishing += 1
        key = f"finished/{self.finishing}/"

        def finish() -> None:
            assert self.store is not None
            failure: OSError | None = None
            try:
                action()
            except OSError as error:
                failure = error
            finally:
                self.store.set(f"{key}{self.rank}", str(failure or ""))
            others = range(1, self.count) if self.rank == 0 else ()
            reasons = [(rank, self._answer(f"{key}{rank}")) for rank in others]
            if failure is not None:
                raise failure
            for rank, reason in reasons:
                if reason:
                    raise OSError(f"process {rank}: {reason}")

        return finish

    def _answer(self, key: str) -> str:
        """Return what another process sets, unless this one gives up waiting."""
        assert self.store is not None
        while not self.store.check([key]):
            if self.ended.wait(POLL):
                raise OSError("another process of this run has ended")
        return self.store.get(key).decode()


class _Board:
    """Texts in the store of process 0: a `lmcore.run.heartbeat.Board`."""

    def __init__(self, store: dist.Store):
        self.store = store

    def set(self, key: str, text: str) -> None:
        """Set or replace a text."""
        self.store.set(key, text)

    def read(self, keys: Sequence[str]) -> list[str]:
        """Return texts, empty where none is set."""
        there = [key for key in keys if self.store.check([key])]
        texts = dict(zip(there, self.store.multi_get(there), strict=True)) if there else {}
        return [texts.get(key, b"").decode() for key in keys]


@contextmanager
def joined(config: Config) -> Iterator[Processes]:
    """Join the processes that the launcher started, until the end of the `with` statement.

    They meet in a store of process 0, not in `torchrun`'s: that outlives a restart, and has the dead processes'
    addresses then.

    Raises:
        UserError: the other processes cannot be reached.
    """
    found = launched()
    if found is None:
        yield Alone()
        return
    cuda = config.train.device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(found.local_rank)
    patience = timedelta(minutes=10)
    try:
        store = dist.TCPStore(found.address, found.port, found.count, found.rank == 0, patience)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.count, timeout=patience)
        connect = partial(dist.TCPStore, found.address, found.port, None, False, timedelta(seconds=SILENCE))
        group = Group(found.rank, found.count, connect)
        heartbeat = Heartbeat(found.rank, found.count, _Board(connect()), _Board(connect()))
    except (RuntimeError, ValueError) as error:
        raise found.unreachable(error) from error
    try:
        yield group
        heartbeat.stop()
        group.largest(0)  # process 0 has the store of all
    except RuntimeError as error:
        if any(word in str(error) for word in TRANSPORTS):
            with _undisturbed():
                raise Lost(found.rank, error, heartbeat.missing()) from error
        raise
    finally:
        group.ended.set()
        heartbeat.stop()
        if not cuda or sys.exception() is None:  # NCCL would wait for the others, before the error is said
            _destroy()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGTERM, which a launcher sends to the others of a process that is gone, until that one is named."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _destroy() -> None:
    """End the threads of torch's process groups, which at Python's end sometimes abort the process."""
    ending = threading.Thread(target=dist.destroy_process_group, daemon=True)
    ending.start()
    ending.join(PATIENCE)  # after an error, one of them may still wait for another process


def sum_over_processes(tensors: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replace tensors by their sums over a group of processes, in as few messages as their sizes ask for.

    Args:
        tensors: the same in all processes, but for their values.
        group: the processes; None takes all.
    """
    bucket: list[Tensor] = []
    for tensor in [*tensors, None]:
        if bucket and (tensor is None or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
            flat = torch.cat([t.flatten() for t in bucket])
            dist.all_reduce(flat, group=group)
            for one, total in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                one.copy_(total.view_as(one))
            bucket = []
        if tensor is not None:
            bucket.append(tensor)
