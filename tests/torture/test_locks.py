"""A second process is refused and harms nothing, and where no lock holds, that is called lost."""

from pathlib import Path

import pytest

from tests.torture import locks
from tests.torture.programs import TWINS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose unbroken runs serve all tests."""
    return tmp_path_factory.mktemp("locks")


@pytest.mark.parametrize("twin", TWINS)
def test_a_second_process_is_refused_and_the_first_is_not_disturbed(twin: str, folder: Path):
    [outcome] = locks.faults(1, folder / twin, (twin,), [(locks.second, True, "refused")])
    assert (outcome.verdict, outcome.detail) == ("refused", "")


def test_the_lock_of_a_killed_process_is_free_where_the_file_system_has_none(folder: Path):
    [outcome] = locks.faults(1, folder / "torchlm", ("torchlm",), [(locks.killed, False, "survived")])
    assert (outcome.verdict, outcome.detail) == ("survived", "")


def test_two_processes_in_one_folder_are_called_lost(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "NO_LOCKS", "import fcntl\nfcntl.flock = lambda handle, operation: None\n")
    (folder / "torchlm" / "second-0").rename(folder / "torchlm" / "locked")
    [outcome] = locks.faults(1, folder / "torchlm", ("torchlm",), [(locks.second, False, "refused")])
    assert outcome.verdict == "lost"
    assert "expected 2, ('error: run_dir: " in outcome.detail
