"""Numbers and texts are sent whole between processes in JAX; one that is gone, or cannot join, is one line."""

import jax
import pytest

from jaxlm import processes
from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.run.processes import Launched, Lost


def test_numbers_and_texts_are_sent_whole():
    """One process, which speaks to itself, and without x64: JAX then has no float64 of its own."""
    group = processes.Group(0, 1)
    assert group.sum([0.1, 2.0**60 + 2.0**10]) == [0.1, 2.0**60 + 2.0**10]
    assert (group.largest(3), group.broadcast("é 'x'")) == (3, "é 'x'")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("UNKNOWN: Gloo AllGather failed: Read error", Lost),
        ("UNAVAILABLE: the coordination service is gone", Lost),
        ("RESOURCE_EXHAUSTED: out of memory", jax.errors.JaxRuntimeError),
    ],
)
def test_a_process_that_is_gone_is_one_line_and_no_other_fault_is(monkeypatch: pytest.MonkeyPatch, reason, expected):
    monkeypatch.setattr(processes, "launched", lambda: Launched(1, 2, 1, 2, "127.0.0.1", 1))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **limits: None)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(expected, match=reason.split()[-1]), processes.joined(Config()):
        raise jax.errors.JaxRuntimeError(reason)


@pytest.mark.parametrize(("local_count", "gpu"), [(1, None), (2, [3])])
def test_a_process_takes_its_own_gpu_unless_it_is_alone_on_its_host(monkeypatch: pytest.MonkeyPatch, local_count, gpu):
    joined = []
    monkeypatch.setattr(processes, "launched", lambda: Launched(7, 8, 3, local_count, "127.0.0.1", 29501))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **limits: joined.append(arguments))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with processes.joined(Config()) as group:
        assert (group.rank, group.count) == (7, 8)
    assert joined == [("127.0.0.1:29501", 8, 7, gpu)]


def test_a_process_that_cannot_join_says_where(monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments: object, **limits: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore")

    monkeypatch.setattr(processes, "launched", lambda: Launched(1, 2, 1, 2, "127.0.0.1", 29501))
    monkeypatch.setattr(jax.distributed, "initialize", fails)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    message = r"^MASTER_ADDR: process 1 cannot join the run at 127.0.0.1:29501 \(DEADLINE_EXCEEDED: no answer\)$"
    with pytest.raises(UserError, match=message), processes.joined(Config()):
        pytest.fail("it runs")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ""),
        ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "1", "TPU_WORKER_HOSTNAMES": "one"}, ""),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE"),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, "TPU_WORKER_HOSTNAMES"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETION_INDEX"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
    ],
)
def test_jax_is_asked_to_find_the_processes_of_a_cluster(monkeypatch: pytest.MonkeyPatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes._cluster() == expected


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [("SLURM_STEP_NUM_TASKS", "4", 4), ("TPU_WORKER_HOSTNAMES", "one,two", 1), ("JOB_COMPLETION_INDEX", "3", 1)],
)
def test_a_cluster_sets_up_as_many_processes_as_it_says(monkeypatch: pytest.MonkeyPatch, name, value, count):
    told = []
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **limits: None)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(processes, "set_up_jax", lambda config, processes: told.append(processes))
    with processes.joined(Config()):
        assert told == [count]
