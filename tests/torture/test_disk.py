"""A full disk loses nothing, and what it would lose is seen."""

import shutil
from pathlib import Path

import pytest

from lmcore import files
from lmcore.run.checkpoints import read_checkpoint
from tests.torture import disk
from tests.torture.disk import Bench, Ended


@pytest.mark.slow
def test_full_disks_lose_nothing(tmp_path: Path):
    outcomes = list(disk.faults(2, tmp_path))
    assert [outcome for outcome in outcomes if outcome.verdict == "lost"] == []
    assert len(outcomes) == 2
    assert outcomes[0].verdict == "refused"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """An unbroken run of torchlm."""
    bench = Bench(tmp_path_factory.mktemp("bench"))
    bench.unbroken("torchlm")
    return bench


def test_what_is_lost_is_seen(bench: Bench, tmp_path: Path):
    run = shutil.copytree(bench.folder / "unbroken-torchlm", tmp_path / "run")
    whole = Ended(0, "", "")
    assert disk.judge(bench, "torchlm", run, whole, "none").verdict == "survived"
    assert "traceback" in disk.judge(bench, "torchlm", run, Ended(0, "", "Traceback (most"), "none").detail
    assert "exit code 1" in disk.judge(bench, "torchlm", run, Ended(1, "", ""), "none").detail
    (run / "samples" / ".sample.part").touch()
    assert "left" in disk.judge(bench, "torchlm", run, whole, "none").detail
    (run / "samples" / ".sample.part").unlink()
    (run / "metrics.jsonl").write_text("")
    assert "other figures" in disk.judge(bench, "torchlm", run, whole, "none").detail
    last = run / "checkpoints" / "step_00000012"
    shutil.copytree(run / "checkpoints" / "step_00000009" / "state", last / "state", dirs_exist_ok=True)
    assert "is damaged" in disk.judge(bench, "torchlm", run, whole, "none").detail
    with pytest.raises(files.Damaged):
        read_checkpoint(last).verify()
