"""Exclude other processes from a folder by a lock file that names its owner.

The lock is `flock`'s: it ends with its owner, however that ends, and the file's content only tells who the owner is. On
a file system without locks, as some network file systems are, a second file, `.lock.owner`, is the lock: it exists as
long as its owner uses the folder, and outlives a killed one. It is taken over from a process of this host that has
ended; whether a process of another host has ended, only the user can tell.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from lmcore.errors import UserError, note
from lmcore.parsing import parse_json

__all__ = ["Lock", "Owner", "lock"]

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors by which a file system says that it has no locks."""


@dataclass(frozen=True)
class Owner:
    """A process, as a lock file names it."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def current(cls) -> "Owner":
        """Return this process."""
        return cls(os.getpid(), socket.gethostname())

    @classmethod
    def read(cls, path: Path) -> "Owner | None":
        """Return the owner that a lock file names; None if there is none, or the file cannot be read."""
        try:
            fields = parse_json(path.read_bytes()[:1000].decode())
            owner = cls(int(fields["pid"]), str(fields["host"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None
        return owner if owner.pid > 0 and owner.host.isprintable() else None

    def has_ended(self) -> bool:
        """Return whether the process has certainly ended: it ran on this host, and no other process has its id.

        An owner with this process's own id has ended too: a restarted container gives the same ids again.
        """
        if self.host != socket.gethostname() or fcntl is None:  # on Windows, os.kill would end the process
            return False
        if self.pid == os.getpid():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):  # another user's process; an id that no system gives
            return False
        return False


class Lock:
    """A lock file that this process holds until `release`, or until it ends."""

    def __init__(self, handle: int, alone: bool, owner_file: Path | None):
        self._handle, self._owner_file = handle, owner_file
        self.alone = alone
        """Whether other processes are excluded; False on Windows."""

    def release(self) -> None:
        """Release the lock, and leave no name of an owner behind."""
        if self._owner_file is not None:
            self._owner_file.unlink(missing_ok=True)
        os.ftruncate(self._handle, 0)
        os.close(self._handle)


def lock(path: Path, busy: Callable[[str], None]) -> Lock:
    """Acquire a lock file, which is created if it does not exist.

    Args:
        path: the file.
        busy: called with the owner, such as "process 12 on host", if another process holds the lock, before waiting for
            it; it may raise instead.

    Raises:
        UserError: the file system has no locks, and the owner may be a process of another host.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return _take(handle, path, busy)
    except BaseException:
        os.close(handle)
        raise


def _take(handle: int, path: Path, busy: Callable[[str], None]) -> Lock:
    if fcntl is None:
        return Lock(handle, alone=False, owner_file=None)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy(str(Owner.read(path) or "another process"))
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        owner_file = path.with_name(f"{path.name}.owner")
        why = f"this file system has no locks ({error.strerror})"
        note(f"{path.parent}: {why}; the file {owner_file.name} excludes other processes instead")
        _create(owner_file, busy)
        return Lock(handle, alone=True, owner_file=owner_file)
    os.ftruncate(handle, 0)  # a killed owner leaves its name
    os.write(handle, _described(Owner.current()))
    return Lock(handle, alone=True, owner_file=None)


def _described(owner: Owner) -> bytes:
    return (json.dumps(asdict(owner)) + "\n").encode()


def _create(owner_file: Path, busy: Callable[[str], None]) -> None:
    """Create the owner file, which only one process can; wait for a live owner, and take over from an ended one."""
    told, unreadable = False, 0
    while True:
        try:
            handle = os.open(owner_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            owner = Owner.read(owner_file)
            if owner is not None and owner.has_ended():
                _remove(owner_file, owner)
                continue
            unreadable += owner is None  # its owner is about to write it, or was killed before it could
            if unreadable > 10 or (owner and owner.host != socket.gethostname()):
                who = owner or "a process that it does not name"
                raise UserError(
                    f"{owner_file.parent} is in use by {who}; wait for it, or, if it has ended, delete {owner_file}"
                ) from None
            if owner and not told:
                busy(str(owner))
                told = True
            time.sleep(0.1)
        else:
            os.write(handle, _described(Owner.current()))
            os.close(handle)
            return


def _remove(owner_file: Path, owner: Owner) -> None:
    """Remove an ended owner's file, unless another process was faster and the file is already its own."""
    aside = owner_file.with_name(f"{owner_file.name}.{os.getpid()}")
    try:
        owner_file.rename(aside)  # of several processes, one can
    except FileNotFoundError:
        return
    if Owner.read(aside) == owner:
        aside.unlink()
    else:
        aside.rename(owner_file)
