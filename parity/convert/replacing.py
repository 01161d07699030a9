"""Write a folder or a file under a temporary name and put it in its place when all of it is on disk.

A kill leaves the old folder, the new one, or, between two renames, the old one under a temporary name. These names
contain the process that uses them, so that the next process can put the old folder back and remove the rest.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from lmcore.errors import UserError, note
from lmcore.files import flush_folder, sync
from lmcore.locks import Owner
from lmcore.run.folder import lock_run, unlock_run

__all__ = ["recover", "replacing", "replacing_file"]


def _host() -> str:
    """Return a short name of this host."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _beside(out: Path, end: str) -> Path:
    return out.with_name(f".{out.name}-{_host()}-{os.getpid()}.{end}")


def recover(out: Path) -> None:
    """Remove what killed processes of this host left beside a folder; put the folder back where they had renamed it.

    Raises:
        UserError: the files beside it cannot be changed.
    """
    out = out.resolve()
    name = re.compile(rf"\.{re.escape(out.name)}-{_host()}-(\d+)\.(tmp|old)")
    try:
        beside = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
        for path in beside:
            match = name.fullmatch(path.name)
            if match is None or not Owner(int(match[1]), socket.gethostname()).has_ended():
                continue
            if match[2] == "old" and not os.path.lexists(out):
                path.rename(out)
                note(f"{out}: put back, since a conversion was killed before it could replace it")
            else:
                shutil.rmtree(path)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error}); nothing was changed") from error


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; rename it to `out` at the end, or delete it if anything fails.

    Raises:
        UserError: the folder is in use by another process, or cannot be written.
    """
    out = out.resolve()  # `.` has no name of its own
    temporary, replaced = (_beside(out, end) for end in ("tmp", "old"))
    with contextlib.ExitStack() as stack:
        if (out / "config.yaml").exists():
            stack.callback(unlock_run, lock_run(out))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            flush_folder(temporary)
            if out.exists():
                out.rename(replaced)
            try:
                temporary.rename(out)
            except BaseException:
                if replaced.exists():
                    replaced.rename(out)
                raise
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written ({error}); nothing was changed") from error
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def replacing_file(out: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write; rename it to `out` at the end, or delete it if anything fails.

    Raises:
        UserError: the file cannot be written.
    """
    out = out.resolve()
    folder = _beside(out, "tmp")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            yield folder / out.name
            flush_folder(folder)
            (folder / out.name).replace(out)
            sync(out.parent)
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written ({error}); nothing was changed") from error
