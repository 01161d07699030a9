"""A second process is refused and harms nothing, and where no lock holds, that is called lost."""

from pathlib import Path

import pytest

from tests.torture import locks
from tests.torture.programs import Program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose unbroken runs serve all tests."""
    return tmp_path_factory.mktemp("locks")


def test_a_second_process_is_refused_and_the_first_is_not_disturbed(folder: Path):
    [outcome] = locks.faults(1, folder, ("torchlm",), [(locks.second, True, "refused")])
    assert (outcome.verdict, outcome.detail) == ("refused", "")


def test_two_processes_in_one_folder_are_called_lost(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "second-0").rename(folder / "locked")
    start = locks.Pair.start

    def careless(pair: locks.Pair) -> Program:
        (folder / "second-0" / ".lock").unlink(missing_ok=True)  # the next process makes another one
        return start(pair)

    monkeypatch.setattr(locks.Pair, "start", careless)
    [outcome] = locks.faults(1, folder, ("torchlm",), [(locks.second, True, "refused")])
    assert outcome.verdict == "lost"
    assert "expected 2, ('error: run_dir: " in outcome.detail
