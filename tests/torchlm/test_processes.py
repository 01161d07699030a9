"""Tensors, numbers and texts are sent whole between processes in PyTorch, and all finish together."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist

from torchlm import processes

SHAPES = [(2, 3), (1,), (), (4, 2), (7,), (3, 3)]


def test_tensors_are_summed_in_buckets_of_any_size(monkeypatch: pytest.MonkeyPatch):
    """With one process, which is there to be spoken to, a sum is the tensor itself, if nothing is mixed up."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for bucket in (1, 7, 8, 10**6):
            monkeypatch.setattr(processes, "BUCKET", bucket)
            tensors = [torch.arange(i, i + math.prod(shape)).reshape(shape) for i, shape in enumerate(SHAPES)]
            before = [tensor.clone() for tensor in tensors]
            processes.sum_over_processes(iter(tensors))
            assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
        group = processes.Group(0, 1)
        assert group.sum([0.1, 2.0**60]) == [0.1, 2.0**60]
        assert (group.largest(3), group.broadcast("é 'x'")) == (3, "é 'x'")
    finally:
        dist.destroy_process_group()


def test_each_process_finishes_by_itself_and_the_first_waits_for_all():
    server = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=5), wait_for_workers=False)

    def connect() -> dist.Store:
        return dist.TCPStore("127.0.0.1", server.port, None, False, timedelta(seconds=5))

    def fail() -> None:
        raise OSError("no space")

    groups = [processes.Group(rank, 3, connect) for rank in range(3)]
    done: list[int] = []
    first = [group.together(partial(done.append, group.rank)) for group in groups]
    second = [group.together(fail if group.rank == 2 else partial(done.append, group.rank)) for group in groups]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(first[0])
        first[2]()
        time.sleep(0.2)
        assert not waiting.done()
        first[1]()
        waiting.result(5)
        assert sorted(done) == [0, 1, 2]
        waiting = pool.submit(second[0])
        second[1]()
        with pytest.raises(OSError, match=r"^no space$"):
            second[2]()
        with pytest.raises(OSError, match=r"^process 2: no space$"):
            waiting.result(5)
        waiting = pool.submit(groups[0].together(lambda: None))
        groups[0].ended.set()
        with pytest.raises(OSError, match="has ended"):
            waiting.result(5)
