"""The folder of runs: what it holds is found by a walk, and nothing outside it can be opened.

Folders that are links are not followed, and a file that is a link is opened only if its target is in the folder, too.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lmcore.errors import is_unicode

__all__ = ["Contents", "Folder", "join"]

MAX_DEPTH = 3
"""Number of folders that a run may lie below the folder of runs: `ablations/optim/adamw`."""
MAX_FOLDERS = 10_000
RUN_FILES = {"metrics.jsonl", "config.yaml"}
"""A folder with one of these is a run."""
ITSELF = "."
"""Name of a run that is the given folder itself."""


class Contents(NamedTuple):
    """What a walk found: paths below the folder, with `/` between their parts."""

    runs: list[str]
    reports: list[str]


class Folder:
    """A folder whose files are opened by their names."""

    def __init__(self, root: Path):
        """Remember the folder, links resolved."""
        self.root = Path(os.path.realpath(root))

    def contents(self) -> Contents:
        """Find runs, and HTML files in and beside them; those with names that are not Unicode are left out."""
        found = Contents([], [])
        visited = 0
        waiting = [(ITSELF, 0)]
        while waiting and visited < MAX_FOLDERS:
            name, depth = waiting.pop()
            visited += 1
            files, folders = self._entries(name)
            found.reports.extend(join(name, file) for file in files if file.endswith(".html"))
            is_run = bool(RUN_FILES & set(files))
            if is_run:
                found.runs.append(name)
            if depth < MAX_DEPTH and (name == ITSELF or not is_run):
                inner = [folder for folder in folders if folder != "checkpoints"]
                waiting.extend((join(name, folder), depth + 1) for folder in inner)
        return Contents(sorted(found.runs), sorted(found.reports))

    def files(self, name: str) -> list[str]:
        """Return the names of the files in a folder; none if there is no such folder."""
        return self._entries(name)[0]

    def is_run(self, name: str) -> bool:
        """Return whether a name is that of a run, without a walk."""
        return self._inside(name) is not None and bool(RUN_FILES & set(self.files(name)))

    def label(self, name: str) -> str:
        """Return the name that users know a run by."""
        return self.root.name if name == ITSELF else name

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            FileNotFoundError: it is missing, no regular file, or outside the folder.
        """
        path = self._inside(name)
        if path is None:
            raise FileNotFoundError(f"{name!r} is not in the folder")
        flags = os.O_RDONLY
        for flag in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # a named pipe must not block
            flags |= getattr(os, flag, 0)
        try:
            file = os.fdopen(os.open(path, flags), "rb")
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f"{name!r} cannot be read ({error})") from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise FileNotFoundError(f"{name!r} is no regular file")
        return file

    def read(self, name: str, limit: int) -> bytes:
        """Read up to `limit` bytes of a file.

        Raises:
            FileNotFoundError: as `open` says.
        """
        with self.open(name) as file:
            return file.read(limit)

    def modified(self, name: str) -> float:
        """Return when a file was last changed, in seconds since 1970; 0 if it cannot be opened."""
        try:
            with self.open(name) as file:
                return os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return 0.0

    def signature(self, name: str) -> tuple[int, ...]:
        """Return what changes whenever a file does; empty if there is none."""
        path = self._inside(name)
        try:
            status = path.stat() if path else None
        except OSError:
            status = None
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) if status else ()

    def _inside(self, name: str) -> Path | None:
        """Return the path of a name with its links resolved, or None if it leads out of the folder."""
        parts = [] if name == ITSELF else name.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part or not is_unicode(part) for part in parts):
            return None
        path = Path(os.path.realpath(self.root.joinpath(*parts)))
        return path if path.is_relative_to(self.root) else None

    def _entries(self, name: str) -> tuple[list[str], list[str]]:
        """Return the names of files that can be opened, and of folders that are neither hidden nor links, in order."""
        path = self._inside(name)
        try:
            entries = list(self._scan(path)) if path else []
        except OSError:  # it has vanished, or may not be read
            return [], []
        files = [entry.name for entry in entries if self._is_file(entry, name)]
        folders = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
        return sorted(files), sorted(folders)

    def _is_file(self, entry: os.DirEntry[str], folder: str) -> bool:
        try:
            return entry.is_file() and (not entry.is_symlink() or self._inside(join(folder, entry.name)) is not None)
        except OSError:  # a link to itself
            return False

    def _scan(self, path: Path) -> Iterator[os.DirEntry[str]]:
        with os.scandir(path) as entries:
            yield from (entry for entry in entries if is_unicode(entry.name))


def join(name: str, inner: str) -> str:
    """Return the name of what lies below a folder of this name."""
    return inner if name == ITSELF else f"{name}/{inner}"
