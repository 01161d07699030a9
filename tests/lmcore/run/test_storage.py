"""A file that cannot be written stops the run or is a note, as the config says."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lmcore.config import CheckpointConfig, Config, ModelConfig, TrainConfig
from lmcore.model.memory import state_bytes
from lmcore.run.storage import NotWritten, Writes, note_space, reason_of


def failing() -> None:
    raise OSError(28, "No space left on device")


def closed() -> None:
    raise BrokenPipeError


def test_a_failure_stops_the_run():
    with pytest.raises(
        NotWritten, match=r"^rows: could not be written \(.*No space left.*\); free some space and resume"
    ):
        Writes("stop").attempt("rows", failing)


def test_a_failure_is_said_once_and_so_is_its_end(capsys):
    writes = Writes("continue")
    for write in (failing, failing, lambda: None, lambda: None, failing):
        writes.attempt("rows", write)
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"note: rows: could not be written \(.*\); training goes on without it, as .*", first)
    assert (second, third) == ("note: rows: is written again", first)


def test_at_the_end_a_failure_is_a_note(capsys):
    Writes("stop").close("rows", failing)
    assert capsys.readouterr().err.startswith("note: rows: could not be written to its end (")


@pytest.mark.parametrize("method", [Writes.attempt, Writes.close])
def test_a_reader_that_has_ended_is_no_full_disk(method: Callable):
    with pytest.raises(BrokenPipeError):
        method(Writes("continue"), "standard output", closed)


@pytest.mark.parametrize(
    ("every", "keep", "start", "existing", "count"),
    [(10, 2, 0, 0, 4), (10, 1, 0, 0, 3), (50, 2, 0, 0, 2), (0, 2, 0, 0, 1), (10, 2, 90, 3, 1), (10, 2, 50, 4, 0)],
)
def test_checkpoints_that_will_not_fit_are_said(
    tmp_path: Path, every: int, keep: int, start: int, existing: int, count: int, capsys, monkeypatch
):
    config = Config(
        model=ModelConfig(vocab_size=1000, dim=64),
        train=TrainConfig(steps=100),
        checkpoint=CheckpointConfig(every=every, keep=keep),
    )
    needed = count * state_bytes(config)

    def note_with(free: int) -> str:
        monkeypatch.setattr("shutil.disk_usage", lambda folder: type("", (), {"free": free}))
        note_space(config, tmp_path, start, existing)
        return capsys.readouterr().err

    assert note_with(needed) == ""
    said = note_with(needed - 1)
    assert bool(said) == (count > 0)
    assert (
        f"the {count} checkpoint{'s' * (count > 1)} to come need at least {needed / 1e6:,.1f} MB" in said or not count
    )


def test_the_real_disk_has_room_for_a_small_model(tmp_path: Path, capsys):
    config = replace(Config(), model=ModelConfig(vocab_size=300))
    note_space(config, tmp_path, 0, 0)
    assert capsys.readouterr().err == ""


def test_of_a_folder_that_cannot_be_copied_the_first_reason_is_given():
    import shutil

    assert reason_of(shutil.Error([("a", "b", "No space"), ("c", "d", "e")])) == "a: No space"
    assert reason_of(OSError("a\nb")) == "a b"
    assert reason_of(ValueError("x" * 300 + " [No space left on device]"))[:27] == "No space left on device: xx"
