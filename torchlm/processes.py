"""The processes of a run in torch: `torch.distributed`, by gloo on a CPU and by NCCL between GPUs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lmcore.config import TrainConfig
from lmcore.run.processes import Alone, Launched, Lost, Processes, launched

__all__ = ["Group", "joined", "sum_over_processes"]

BUCKET = 2**22
"""Number of values that are summed over the processes at once."""


class Group:
    """The processes of one run: a `lmcore.run.processes.Processes`."""

    def __init__(self, found: Launched):
        self.rank, self.count = found.rank, found.count

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        with _reached():
            dist.all_reduce(total)
        return total.tolist()

    def largest(self, value: int) -> int:
        """Return the largest of an integer over all processes."""
        largest = torch.tensor(value)
        with _reached():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def broadcast(self, text: str) -> str:
        """Return the text of process 0."""
        texts = [text]
        with _reached():
            dist.broadcast_object_list(texts)
        return texts[0]


@contextmanager
def _reached() -> Iterator[None]:
    """Say in one line that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(dist.get_rank(), error) from error


@contextmanager
def joined(train: TrainConfig) -> Iterator[Processes]:
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
    cuda = train.device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(found.local_rank)
    patience = timedelta(minutes=10)
    try:
        store = dist.TCPStore(found.address, found.port, found.count, found.rank == 0, patience)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.count, timeout=patience)
    except (RuntimeError, ValueError) as error:
        raise found.unreachable(error) from error
    yield Group(found)
    dist.destroy_process_group()  # not after an error, which is to be said first


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all processes, in as few messages as their sizes ask for."""
    bucket: list[Tensor] = []
    for tensor in [*tensors, None]:
        if bucket and (tensor is None or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
            flat = torch.cat([t.flatten() for t in bucket])
            with _reached():
                dist.all_reduce(flat)
            for one, total in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                one.copy_(total.view_as(one))
            bucket = []
        if tensor is not None:
            bucket.append(tensor)
