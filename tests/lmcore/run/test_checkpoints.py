"""Checkpoints are whole or not there, and the right ones are kept."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmcore.errors import UserError
from lmcore.files import Damaged
from lmcore.run import checkpoints
from lmcore.run.checkpoints import (
    Checkpoint,
    Checkpoints,
    best_checkpoint,
    find_checkpoint,
    list_checkpoints,
)
from tests.lmcore.run.folders import names, write


@pytest.fixture
def saving(tmp_path: Path):
    """A run's checkpoints: the latest two and the best."""
    saver = Checkpoints(tmp_path, "jax", keep=2)
    yield saver
    saver.close()


def steps(run_dir: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run_dir)]


def test_a_saved_checkpoint_is_all_there(saving: Checkpoints, tmp_path: Path):
    saving.save(7, 1.5, write)
    saving.wait()
    folder = tmp_path / "checkpoints" / "step_00000007"
    assert list_checkpoints(tmp_path) == [Checkpoint(folder, "jax", 7, 1.5)]
    [found] = list_checkpoints(tmp_path)
    assert (found.run_dir, (found.state / "weights").read_text()) == (tmp_path, "whole")
    assert names(tmp_path) == ["step_00000007"]


def test_it_is_written_in_the_background_and_the_next_save_waits(saving: Checkpoints, tmp_path: Path):
    events = []

    def slow(folder: Path) -> Callable[[], None]:
        events.append("copied")
        finish = write(folder)
        return lambda: (finish(), events.append(f"there were {steps(tmp_path)}"))[0]

    saving.save(1, None, slow)
    saving.save(2, None, slow)
    saving.wait()
    assert events == ["copied", "there were []", "copied", "there were [1]"]
    assert steps(tmp_path) == [1, 2]


def fail_at_once(error: Exception) -> Callable[[Path], Callable[[], None]]:
    def failing(folder: Path) -> Callable[[], None]:
        folder.mkdir()
        raise error

    return failing


def fail_later(error: Exception) -> Callable[[Path], Callable[[], None]]:
    def failing(folder: Path) -> Callable[[], None]:
        def finish() -> None:
            folder.mkdir()
            (folder / "weights").write_text("ha")
            raise error

        return finish

    return failing


def save_and_wait(saving: Checkpoints, write: Callable) -> None:
    saving.save(2, 1.0, write)
    saving.wait()


@pytest.mark.parametrize("failing", [fail_at_once, fail_later])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("disk\nfull")])
def test_a_failed_write_leaves_no_checkpoint_and_the_earlier_ones(tmp_path: Path, failing: Callable, error: Exception):
    saving = Checkpoints(tmp_path, "jax", keep=2)
    saving.save(1, 2.0, write)
    message = r"^checkpoint: could not be written \(.*(No space left on device|disk full)\); the last one saved is "
    with pytest.raises(UserError, match=message):
        save_and_wait(saving, failing(error))
    saving.close()
    assert steps(tmp_path) == [1]
    assert (find_checkpoint(tmp_path).state / "weights").read_text() == "whole"
    assert names(tmp_path) == ["step_00000001", "step_00000002.tmp"], "what is unfinished never has a checkpoint's name"
    Checkpoints(tmp_path, "jax", keep=2).close()
    assert names(tmp_path) == ["step_00000001"], "the next run clears it away"


def test_a_failure_in_the_background_is_told_at_the_next_save(saving: Checkpoints):
    saving.save(1, None, fail_later(OSError("gone")))
    with pytest.raises(UserError, match="could not be written"):
        saving.save(2, None, write)


def test_another_kind_of_failure_is_not_called_a_full_disk(saving: Checkpoints):
    saving.save(1, None, fail_later(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        saving.wait()


KILLED = """
import os, sys
from pathlib import Path
from lmcore.run.checkpoints import Checkpoints

def write(folder):
    def finish():
        folder.mkdir()
        (folder / "weights").write_text("whole" if finish_it else "ha")
        finish_it or os._exit(9)
    return finish

saver = Checkpoints(Path(sys.argv[1]), "jax", keep=2)
for step, finish_it in ((1, True), (2, False)):
    saver.save(step, None, write)
    saver.wait()
"""


def test_a_kill_in_the_middle_leaves_the_earlier_checkpoint(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoints.__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, timeout=60)
    assert killed.returncode == 9
    assert names(tmp_path) == ["step_00000001", "step_00000002.tmp"]
    assert steps(tmp_path) == [1]


def test_a_step_that_is_saved_already_is_left_alone(saving: Checkpoints, tmp_path: Path):
    saving.save(1, 2.0, write)
    saving.save(1, None, fail_at_once(OSError("must not be called")))
    saving.wait()
    assert [checkpoint.valid_loss for checkpoint in list_checkpoints(tmp_path)] == [2.0]


@pytest.mark.parametrize(
    ("keep", "losses", "kept"),
    [
        (2, [5.0, 4.0, 3.0, 2.0], [3, 4]),
        (2, [1.0, 4.0, 3.0, 2.0], [1, 3, 4]),
        (1, [5.0, 1.0, 3.0, 2.0], [2, 4]),
        (1, [5.0, 4.0, 3.0, 2.0], [4]),
        (2, [None, 4.0, None, None], [2, 3, 4]),
        (2, [None, None, None, None], [3, 4]),  # none has a loss: the latest is as good as any
        (1, [math.nan, 4.0, 5.0, None], [2, 4]),
        (1, [math.inf, 4.0, 5.0, math.nan], [2, 4]),
        (9, [5.0, 4.0, 3.0, 2.0], [1, 2, 3, 4]),
    ],
)
def test_the_latest_and_the_best_are_kept(tmp_path: Path, keep: int, losses: list[float | None], kept: list[int]):
    saving = Checkpoints(tmp_path, "jax", keep)
    for step, loss in enumerate(losses, start=1):
        saving.save(step, loss, write)
    saving.wait()
    saving.close()
    assert steps(tmp_path) == kept
    assert names(tmp_path) == [f"step_{step:08d}" for step in kept]


def test_the_best_has_the_lowest_loss_and_is_the_later_of_equals():
    made = [Checkpoint(Path(str(i)), "jax", i, loss) for i, loss in enumerate([None, math.nan, 2.0, 1.0, 1.0])]
    assert best_checkpoint(made).step == best_checkpoint(made[::-1]).step == 4
    assert best_checkpoint(made[:4]).step == 3
    assert best_checkpoint(made[:2]).step == 1, "neither has a loss"


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path):
    saving = Checkpoints(tmp_path, "jax", 9)
    for step in (5, 10_000, 300):
        saving.save(step, None, write)
    saving.wait()
    saving.close()
    assert steps(tmp_path) == [5, 300, 10_000]


def test_a_run_is_named_by_its_folder_or_by_one_checkpoint(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_checkpoint(run_dir).step == 10, "the best"
    assert find_checkpoint(run_dir / "checkpoints" / "step_00000020").step == 20
    monkeypatch.chdir(run_dir / "checkpoints" / "step_00000020")
    assert find_checkpoint(Path()).run_dir == run_dir, "relative paths lead to the run too"


def test_a_run_that_is_not_there_or_has_no_checkpoint_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"none: no such folder, expected a run or one of its checkpoints$"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match=r": found no checkpoint, expected a run folder with checkpoints/step_\*"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"framework": "jax", "step": "x", "valid_loss": null}', None]
)
def test_a_damaged_description_is_named_and_passed_over(run_dir: Path, content: str | None, capsys):
    path = run_dir / "checkpoints" / "step_00000020" / "checkpoint.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert find_checkpoint(run_dir, "latest").step == 10
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"note: {re.escape(str(path))}: (cannot be read|is damaged) .*; skipped", line)


def test_a_description_says_framework_step_and_loss(run_dir: Path):
    path = run_dir / "checkpoints" / "step_00000020" / "checkpoint.json"
    found = json.loads(path.read_text())
    assert {name: found[name] for name in found if name not in ("files", "run", "checksum")} == {
        "framework": "jax",
        "step": 20,
        "valid_loss": 2.0,
        "skipped": 0,
    }
    assert list(found["files"]) == ["state/weights"]


def damage(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step_{step:08d}" / "state" / "weights").write_text("whale")


def test_a_damaged_checkpoint_is_passed_over_by_its_run_and_refused_by_itself(run_dir: Path, capsys):
    damage(run_dir, 10)
    assert find_checkpoint(run_dir).step == 20, "the best is damaged"
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"note: .*step_00000010/state/weights: is damaged .*; skipped", line)
    assert find_checkpoint(run_dir, verify=False).step == 10
    with pytest.raises(
        Damaged, match=r"weights: is damaged.*use another checkpoint, or read it unverified with --no_v"
    ):
        find_checkpoint(run_dir / "checkpoints" / "step_00000010")
    damage(run_dir, 20)
    with pytest.raises(Damaged, match=r"is damaged.*; every checkpoint of .* is damaged .*--no_verify$"):
        find_checkpoint(run_dir)
    assert names(run_dir) == ["step_00000010", "step_00000020"], "reading renames nothing"


def test_a_checkpoint_without_checksums_is_read_and_said_to_be(run_dir: Path, capsys):
    path = run_dir / "checkpoints" / "step_00000010" / "checkpoint.json"
    path.write_text('{"framework": "jax", "step": 10, "valid_loss": 1.0}\n')
    assert find_checkpoint(run_dir).step == 10
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"note: {path.parent} was written by an older version, without checksums; reading it unverified"


def test_only_names_that_are_written_here_are_touched(run_dir: Path):
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "step_00000010", folder / "step_00000010-good")
    (folder / "step_00000040.tar.gz").touch()
    (folder / "x.tmp").mkdir()
    (folder / "step_00000005.tmp").mkdir()
    saving = Checkpoints(run_dir, "jax", keep=1)
    saving.save(30, 0.5, write)
    saving.wait()
    saving.close()
    assert names(run_dir) == ["step_00000010-good", "step_00000030", "step_00000040.tar.gz", "x.tmp"]
    assert find_checkpoint(folder / "step_00000010-good").step == 10


def test_metrics_that_have_changed_are_seen(run_dir: Path):
    path = run_dir / "metrics.jsonl"
    path.write_text('{"step": 30, "loss": 2.5}\n')
    saving = Checkpoints(run_dir, "jax", keep=1)
    saving.save(30, 0.5, write)
    saving.wait()
    saving.close()
    checkpoint = find_checkpoint(run_dir)
    path.write_text(path.read_text() + '{"step": 31, "loss": 2.4}\n')
    assert checkpoint.verify_metrics(), "later rows don't matter"
    path.write_text(path.read_text().replace("2.5", "2.7"))
    with pytest.raises(Damaged, match="edited before step 30"):
        checkpoint.verify_metrics()
    path.unlink()
    assert not checkpoint.verify_metrics()
