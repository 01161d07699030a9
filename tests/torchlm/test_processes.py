"""Tensors, numbers and texts are sent whole between processes in PyTorch, and one that is gone is one line."""

import math

import pytest
import torch
import torch.distributed as dist

from lmcore.run.processes import Launched, Lost
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
        group = processes.Group(Launched(0, 1, 0, 1, "127.0.0.1", 1))
        assert group.sum([0.1, 2.0**60]) == [0.1, 2.0**60]
        assert (group.largest(3), group.broadcast("é 'x'")) == (3, "é 'x'")
    finally:
        dist.destroy_process_group()


def test_a_process_that_is_gone_is_one_line():
    message = r"^process 0: another process of this run has ended .*\(Read error\)$"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(Lost, match=message) as error, processes._reached():
            raise RuntimeError("Read error. Check the logs.\nmore")
    finally:
        dist.destroy_process_group()
    assert error.value.exit_code == 1
