"""A lock names its owner and ends with it, on a file system with locks and on one without."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmcore import locks
from lmcore.errors import UserError
from lmcore.locks import Owner, lock

NO_FLOCK = """
import errno, fcntl
def refuse(handle, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = refuse
"""
HOLD = """
import sys, time
from pathlib import Path
from lmcore.locks import lock
held = lock(Path(sys.argv[1]), lambda owner: print("waiting for", owner, flush=True))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
held.release()
"""
FILE_SYSTEMS = pytest.mark.parametrize("has_locks", [True, False])


class Busy(Exception):
    pass


def busy(owner: str) -> None:
    raise Busy(owner)


def hold(path: Path, seconds: float, has_locks: bool = True) -> subprocess.Popen[str]:
    code = ("" if has_locks else NO_FLOCK) + HOLD
    environment = os.environ | {"PYTHONPATH": str(Path(locks.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(path), str(seconds)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool) -> Iterator[Path]:
    if not has_locks:
        monkeypatch.setattr(locks.fcntl, "flock", without(errno.ENOLCK))
    yield tmp_path / ".lock"
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
    assert (tmp_path / ".lock").read_bytes() == b""


def without(number: int):
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@FILE_SYSTEMS
def test_a_held_lock_names_its_owner_and_is_free_once_released(file: Path, has_locks: bool):
    with hold(file, 60, has_locks) as process:
        assert first_line(process) == "held"
        with pytest.raises(Busy, match=re.escape(f"process {process.pid} on {socket.gethostname()}")):
            lock(file, busy)
        process.kill()
    held = lock(file, lambda owner: pytest.fail("its owner has ended"))
    assert held.alone
    held.release()
    lock(file, busy).release()


@FILE_SYSTEMS
def test_who_waits_gets_the_lock_when_it_is_released(file: Path, has_locks: bool):
    held = lock(file, busy)
    with hold(file, 0, has_locks) as process:
        assert first_line(process) == f"waiting for process {os.getpid()} on {socket.gethostname()}"
        held.release()
        assert first_line(process) == "held"
    assert process.returncode == 0


@FILE_SYSTEMS
def test_who_waits_gets_the_lock_when_its_owner_is_killed(tmp_path: Path, has_locks: bool):
    with hold(tmp_path / ".lock", 60, has_locks) as owner:
        assert first_line(owner) == "held"
        with hold(tmp_path / ".lock", 0, has_locks) as process:
            assert first_line(process).startswith(f"waiting for process {owner.pid}")
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            assert first_line(process) == "held"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_noted_in_one_line(tmp_path: Path, monkeypatch, capsys, number: int):
    monkeypatch.setattr(locks.fcntl, "flock", without(number))
    held = lock(tmp_path / ".lock", busy)
    assert json.loads((tmp_path / ".lock.owner").read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    [line] = capsys.readouterr().err.splitlines()
    why = f"this file system has no locks ({os.strerror(number)})"
    assert line == f"note: {tmp_path}: {why}; the file .lock.owner excludes other processes instead"
    held.release()
    assert not (tmp_path / ".lock.owner").exists()


@pytest.mark.parametrize(
    ("content", "who"),
    [
        ('{"pid": 12, "host": "elsewhere"}', "process 12 on elsewhere"),
        ("", "a process that it does not name"),
        ("[" * 1000, "a process that it does not name"),
        ('{"pid": 12, "host": "\\u001b[2J"}', "a process that it does not name"),
    ],
)
def test_an_owner_that_cannot_be_judged_is_refused_with_what_to_delete(
    tmp_path: Path, monkeypatch, content: str, who: str
):
    monkeypatch.setattr(locks.fcntl, "flock", without(errno.ENOLCK))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    owner_file = tmp_path / ".lock.owner"
    owner_file.write_text(content)
    expected = f"{tmp_path} is in use by {who}; wait for it, or, if it has ended, delete {owner_file}"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        lock(tmp_path / ".lock", busy)
    assert owner_file.read_text() == content
    owner_file.unlink()
    lock(tmp_path / ".lock", busy).release()


def test_only_an_ended_process_of_this_host_has_ended():
    host = socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert Owner(ended.pid, host).has_ended()
    assert not Owner(ended.pid, "elsewhere").has_ended()
    assert not Owner(os.getppid(), host).has_ended()
    assert not Owner(1, host).has_ended(), "another user's, perhaps"
    assert not Owner(10**30, host).has_ended()
    assert Owner.current().has_ended(), "a process of a container before it was restarted"


def test_a_faster_process_keeps_the_owner_file(tmp_path: Path):
    owner_file = tmp_path / ".lock.owner"
    faster = Owner(1, "host")
    owner_file.write_text(json.dumps({"pid": 1, "host": "host"}))
    locks._remove(owner_file, Owner(2, "host"))
    assert Owner.read(owner_file) == faster
    locks._remove(owner_file, faster)
    locks._remove(owner_file, faster)
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_a_lock_is_not_taken_for_a_missing_feature(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(locks.fcntl, "flock", without(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        lock(tmp_path / ".lock", busy)
