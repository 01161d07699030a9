"""A run of two processes in JAX is the run of one, writes what one writes, and resumes as one."""

import shutil
from pathlib import Path

import jax
import pytest

from jaxlm import processes
from lmcore.config import TrainConfig
from lmcore.errors import UserError
from lmcore.run.processes import Launched, Lost
from tests.launching import TOLERANCE, by_torchrun, difference, rows, train, without_launcher

TWIN = "jaxlm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text, and with the run of one process in runs/one."""
    folder = tmp_path_factory.mktemp("processes")
    [(code, error)] = without_launcher(train(TWIN, folder / "data", run_dir="runs/one"), folder, count=1)
    assert code == 0, error
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> tuple[Path, str]:
    """The run of two processes, whose folder they name themselves, and what they printed."""
    (folder / "two").mkdir()
    printed = by_torchrun(train(TWIN, folder / "data"), folder / "two")
    [run] = (folder / "two" / "runs").iterdir()
    return run, printed


def test_two_processes_have_the_metrics_of_one(folder: Path, two: tuple[Path, str]):
    one, found = rows(folder / "runs" / "one"), rows(two[0])
    assert [row["step"] for row in found] == list(range(1, 9)), "each step once"
    assert [row["step"] for row in found if "valid_loss" in row] == [4, 8]
    assert difference(one, found) <= TOLERANCE
    assert one[-1]["loss"] < one[0]["loss"] - 0.01, "it learns"
    changed = [row | {"valid_loss": row["valid_loss"] + 1e-11} if "valid_loss" in row else row for row in found]
    assert difference(one, changed) > TOLERANCE


def test_process_0_writes_one_folder_and_prints_each_line_once(folder: Path, two: tuple[Path, str]):
    run, printed = two
    both = (folder / "runs" / "one", run)
    names = [sorted(str(path.relative_to(r)) for path in (*r.glob("*"), *r.glob("*/*"))) for r in both]
    assert names[0] == names[1]
    assert [printed.count(f"{line}  ") for line in ("step 2/8", "step 7/8", "step 8/8")] == [1, 1, 1]
    assert printed.count("run folder") == 1
    samples = [sorted(path.read_text() for path in r.glob("samples/*")) for r in both]
    assert samples[0] == samples[1]


def test_the_run_of_two_processes_resumes_in_one(folder: Path, two: tuple[Path, str]):
    resumed = folder / "runs" / "resumed"
    shutil.copytree(two[0], resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_00000008")
    arguments = train(TWIN, folder / "data", run_dir=resumed, train__resume="auto")
    [(code, error)] = without_launcher(arguments, folder, count=1)
    assert code == 0, error
    assert difference(rows(folder / "runs" / "one"), rows(resumed)) <= TOLERANCE
    assert "valid_loss" in rows(resumed)[-1]


def test_a_batch_that_cannot_be_split_is_one_line_of_process_0(folder: Path):
    arguments = train(TWIN, folder / "data", run_dir="runs/bad", train__batch_size=6)
    (code, error), (other, silence) = without_launcher(arguments, folder)
    assert (code, other) == (2, 2)
    assert [line[:32] for line in error.splitlines() if "Gloo" not in line] == ["error: train.batch_size: found 6"]
    assert "error" not in silence
    assert not (folder / "runs" / "bad").exists()


def test_numbers_and_texts_are_sent_whole():
    """One process, which speaks to itself, and without x64: JAX then has no float64 of its own."""
    group = processes.Group(Launched(0, 1, 0, 1, "127.0.0.1", 1))
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
    with pytest.raises(expected, match=reason.split()[-1]), processes.joined(TrainConfig()):
        raise jax.errors.JaxRuntimeError(reason)


@pytest.mark.parametrize(("local_count", "gpu"), [(1, None), (2, [3])])
def test_a_process_takes_its_own_gpu_unless_it_is_alone_on_its_host(monkeypatch: pytest.MonkeyPatch, local_count, gpu):
    joined = []
    monkeypatch.setattr(processes, "launched", lambda: Launched(7, 8, 3, local_count, "127.0.0.1", 29501))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **limits: joined.append(arguments))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with processes.joined(TrainConfig()) as group:
        assert (group.rank, group.count) == (7, 8)
    assert joined == [("127.0.0.1:29501", 8, 7, gpu)]


def test_a_process_that_cannot_join_says_where(monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments: object, **limits: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore")

    monkeypatch.setattr(processes, "launched", lambda: Launched(1, 2, 1, 2, "127.0.0.1", 29501))
    monkeypatch.setattr(jax.distributed, "initialize", fails)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    message = r"^MASTER_ADDR: process 1 cannot join the run at 127.0.0.1:29501 \(DEADLINE_EXCEEDED: no answer\)$"
    with pytest.raises(UserError, match=message), processes.joined(TrainConfig()):
        pytest.fail("it runs")
