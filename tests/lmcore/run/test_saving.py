"""Checkpoints are whole or not there, and the right ones are kept."""

import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmcore.errors import UserError
from lmcore.run import saving as saving_module
from lmcore.run.checkpoints import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
)
from lmcore.run.saving import Checkpoints
from lmcore.run.storage import LastNotSaved, NotWritten
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
    message = r"^checkpoint: that of step 2 could not be written \(.*(No space|disk full).*\); the last one saved is "
    with pytest.raises(UserError, match=message):
        save_and_wait(saving, failing(error))
    saving.close()
    assert steps(tmp_path) == [1]
    assert (find_checkpoint(tmp_path).state / "weights").read_text() == "whole"
    assert names(tmp_path) == ["step_00000001"], "what is unfinished is deleted: its space is needed"


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
from lmcore.run.saving import Checkpoints

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
    environment = os.environ | {"PYTHONPATH": str(Path(saving_module.__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, timeout=60)
    assert killed.returncode == 9
    assert names(tmp_path) == ["step_00000001", "step_00000002.tmp"]
    assert steps(tmp_path) == [1]
    Checkpoints(tmp_path, "jax", keep=2).close()
    assert names(tmp_path) == ["step_00000001"], "the next run clears it away"


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


def test_with_continue_a_failure_is_a_note_and_the_next_checkpoint_is_tried(tmp_path: Path, capsys):
    saving = Checkpoints(tmp_path, "jax", keep=2, on_error="continue")
    saving.save(1, 2.0, write)
    for step, failing in ((2, fail_at_once), (3, fail_later)):
        saving.save(step, 1.0, failing(OSError(28, "No space left on device")))
    saving.wait()
    with pytest.raises(
        LastNotSaved, match=r"that of step 3 .*; the run ends without it: free some space and resume$"
    ) as e:
        saving.finish()
    assert e.value.exit_code == 1
    for step, line in zip((2, 3), capsys.readouterr().err.splitlines(), strict=True):
        found = (
            rf"note: checkpoint: that of step {step} could not .*step_00000001; training goes on, and the next one .*"
        )
        assert re.fullmatch(found, line)
    saving.save(4, 1.0, write)
    saving.finish()
    saving.close()
    assert names(tmp_path) == ["step_00000001", "step_00000004"]


def test_a_failure_is_said_before_the_next_checkpoint(saving: Checkpoints):
    saving.save(1, None, fail_later(OSError("gone")))
    saving.close()
    with pytest.raises(NotWritten, match="that of step 1 could not be written"):
        saving.poll()
    saving.poll()


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_note(tmp_path: Path, capsys):
    saving = Checkpoints(tmp_path, "jax", keep=1)
    saving.save(1, 2.0, write)
    saving.wait()
    (tmp_path / "checkpoints" / "step_00000001.tmp").write_text("in the way")
    saving.save(2, 1.0, write)
    saving.finish()
    saving.close()
    assert steps(tmp_path) == [1, 2]
    assert re.match(r"note: checkpoint: .*step_00000001 could not be deleted \(", capsys.readouterr().err)


def test_what_a_thread_still_writes_after_the_failure_is_deleted_too(tmp_path: Path):
    saver = Checkpoints(tmp_path, "jax", keep=2)

    def late(folder: Path) -> None:
        for _ in range(4):
            time.sleep(0.08)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "late").write_text("late")

    def fails(folder: Path) -> Callable[[], None]:
        thread = threading.Thread(target=late, args=(folder,))
        thread.start()
        raise OSError("No space left on device")

    with pytest.raises(NotWritten):
        saver.save(7, None, fails)
    saver.close()
    assert list((tmp_path / "checkpoints").iterdir()) == []
