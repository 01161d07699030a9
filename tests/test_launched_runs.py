"""A run of two processes is the run of one in either twin, writes what one writes, and resumes as one."""

import shutil
from pathlib import Path

import pytest

from tests.launching import TOLERANCE, by_torchrun, difference, rows, train, without_launcher


@pytest.fixture(scope="module", params=["torchlm", "jaxlm"])
def twin(request: pytest.FixtureRequest) -> str:
    """Either twin."""
    return request.param


@pytest.fixture(scope="module")
def folder(twin: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text, and with the run of one process in runs/one."""
    folder = tmp_path_factory.mktemp("processes")
    [(code, error)] = without_launcher(train(twin, folder / "data", run_dir="runs/one"), folder, count=1)
    assert code == 0, error
    return folder


@pytest.fixture(scope="module")
def two(twin: str, folder: Path) -> tuple[Path, str]:
    """The run of two processes, whose folder they name themselves, and what they printed."""
    (folder / "two").mkdir()
    printed = by_torchrun(train(twin, folder / "data"), folder / "two")
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


def test_the_run_of_two_processes_resumes_in_one(twin: str, folder: Path, two: tuple[Path, str]):
    resumed = folder / "runs" / "resumed"
    shutil.copytree(two[0], resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_00000008")
    arguments = train(twin, folder / "data", run_dir=resumed, train__resume="auto")
    [(code, error)] = without_launcher(arguments, folder, count=1)
    assert code == 0, error
    assert difference(rows(folder / "runs" / "one"), rows(resumed)) <= TOLERANCE
    assert "valid_loss" in rows(resumed)[-1]


@pytest.mark.slow
def test_a_batch_that_cannot_be_split_is_one_line_of_process_0(twin: str, folder: Path):
    arguments = train(twin, folder / "data", run_dir="runs/bad", train__batch_size=6)
    (code, error), (other, silence) = without_launcher(arguments, folder)
    assert (code, other) == (2, 2)
    assert [line[:32] for line in error.splitlines() if "Gloo" not in line] == ["error: train.batch_size: found 6"]
    assert "error" not in silence
    assert not (folder / "runs" / "bad").exists()
