"""A folder is replaced as a whole, and what killed processes left beside it is removed, or is the folder itself."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lmcore.errors import UserError
from parity.convert import replacing as module
from parity.convert.replacing import recover, replacing, replacing_file


def made(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(content)
    return folder


@pytest.fixture
def ended() -> int:
    """Id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def beside(out: Path, pid: int, end: str) -> Path:
    return out.with_name(f".{out.name}-{module._host()}-{pid}.{end}")


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path):
    out = made(tmp_path / "out", "old")

    def failing() -> None:
        with replacing(out) as temporary:
            (temporary / "file").write_text("new")
            assert (out / "file").read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert (out / "file").read_text() == "old"
    with replacing(out) as temporary:
        (temporary / "file").write_text("new")
    assert (out / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_what_a_killed_process_left_is_removed(tmp_path: Path, ended: int):
    out = made(tmp_path / "out [1]*", "new")
    made(beside(out, ended, "tmp"), "half")
    made(beside(out, ended, "old"), "old")
    recover(out)
    assert list(tmp_path.iterdir()) == [out]
    assert (out / "file").read_text() == "new"


def test_a_folder_that_a_killed_process_had_renamed_is_put_back(tmp_path: Path, ended: int, capsys):
    out = tmp_path / "out"
    made(beside(out, ended, "tmp"), "half")
    made(beside(out, ended, "old"), "old")
    recover(out)
    assert list(tmp_path.iterdir()) == [out]
    assert (out / "file").read_text() == "old"
    assert capsys.readouterr().err.startswith(f"note: {out}: put back, since a conversion was killed")


def test_what_is_in_use_or_not_ours_stays(tmp_path: Path, ended: int, monkeypatch):
    out = tmp_path / "out"
    elsewhere = beside(out, ended, "tmp").with_name(f".out-00000000-{ended}.tmp")
    kept = [
        beside(out, os.getppid(), "old"),
        elsewhere,
        tmp_path / ".out-mine.tmp",
        beside(tmp_path / "o", ended, "tmp"),
    ]
    for path in kept:
        made(path, "")
    recover(out)
    assert set(tmp_path.iterdir()) == set(kept)
    monkeypatch.setattr(socket, "gethostname", lambda: "another host")
    recover(tmp_path / "o")
    assert set(tmp_path.iterdir()) == set(kept)


def test_a_parent_that_does_not_exist_is_made_and_one_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch):
    recover(tmp_path / "new" / "out")
    with replacing(tmp_path / "new" / "out"):
        pass
    assert (tmp_path / "new" / "out").is_dir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"--out: .* cannot be written .*Permission denied.*; nothing was changed"):
        recover(tmp_path / "out")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    out = tmp_path / "deep" / "model.gguf"
    with replacing_file(out) as path:
        path.write_text("one")
    assert out.read_text() == "one"

    def fail(failure: BaseException) -> None:
        with replacing_file(out) as path:
            path.write_text("half")
            raise failure

    for failure in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(UserError if isinstance(failure, OSError) else KeyboardInterrupt):
            fail(failure)
        assert out.read_text() == "one"
    with replacing_file(out) as path:
        path.write_text("two")
    assert out.read_text() == "two"
    assert [each.name for each in out.parent.iterdir()] == ["model.gguf"]
    with pytest.raises(UserError, match="cannot be written"), replacing_file(out / "below"):
        pass
