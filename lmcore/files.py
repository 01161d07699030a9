"""Write files that survive a kill or a power cut, and verify them by checksums.

All files that the packages keep are written by this module: a file is replaced atomically, and a folder is flushed to
disk before it gets its final name. SHA-256 takes about 0.07 s for 100 MB.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmcore.errors import UserError

__all__ = [
    "SUMS",
    "Appender",
    "Damaged",
    "check_files",
    "check_folder",
    "check_links",
    "check_seal",
    "check_stamp",
    "check_sums",
    "checksums",
    "file_digest",
    "flush_folder",
    "replace_file",
    "seal",
    "stamp",
    "sync",
    "write_sums",
]

CHUNK = 1 << 20
SUMS = "SHA256SUMS"
SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\0]+)")
"""Matches a line of it: checksum, whether it was read as a binary file, and name of a file in the same folder."""
STAMP = "# sha256 of the lines below: "


class Damaged(UserError):
    """A file is missing or has changed since it was written."""


def file_digest(path: Path, length: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first `length` bytes; it is read in chunks.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if length is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            while length > 0 and (chunk := file.read(min(length, CHUNK))):
                digest.update(chunk)
                length -= len(chunk)
            return digest.hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def checksums(folder: Path) -> dict[str, str]:
    """Return relative path -> SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def check_folder(field: str, folder: Path) -> None:
    """Check that neither a folder nor any of its parents is a file, so that the folder can be created.

    Args:
        field: config field or option that names the folder, for the message.
        folder: folder to write to.

    Raises:
        UserError: there is a file in its place or above it.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{field}: {nearest} is a file, expected a folder; name another folder")


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Compare files with their checksums; other files in the folder are ignored.

    Args:
        folder: folder of the files.
        expected: the result of `checksums` when they were written.

    Raises:
        Damaged: a file is missing or has changed.
    """
    for name, digest in expected.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Damaged(f"{folder}: found checksums of {name!r}, expected names of files in it")
        if not path.is_file():
            raise Damaged(f"{path}: is missing")
        if file_digest(path) != digest:
            raise Damaged(f"{path}: is damaged (its checksum is not the recorded one)")


def check_links(folder: Path, names: Iterable[str]) -> None:
    """Check that no symbolic link among a folder's entries, or below them, leads outside of it.

    Whoever made a folder could else have files elsewhere read, copied, overwritten or deleted.

    Args:
        folder: the folder, which may itself be a link.
        names: of the entries that are ours; others are not looked at.

    Raises:
        Damaged: a link leads outside.
    """
    root = folder.resolve()
    for entry in (folder / name for name in names):
        below = entry.rglob("*") if entry.is_dir() and not entry.is_symlink() else ()
        for path in (entry, *below):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                what = f"is a link to {path.resolve()}, outside of {folder}"
                raise Damaged(f"{path}: {what}; replace it by what it names")


def seal(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a JSON file with an additional field `checksum` over the others."""
    return fields | {"checksum": _digest(fields)}


def check_seal(path: Path, fields: Any, mark: str) -> bool:
    """Compare the fields of a JSON file with the checksum among them.

    Args:
        path: the file, for the message.
        fields: its content.
        mark: a field that only files with a checksum have, by which a lost checksum differs from an older version.

    Returns:
        False for a file of an older version, which has no checksum.

    Raises:
        Damaged: they differ.
    """
    if not isinstance(fields, dict):
        raise Damaged(f"{path}: is damaged (found {type(fields).__name__}, expected fields)")
    if "checksum" not in fields and mark not in fields:
        return False
    if fields.get("checksum") != _digest({name: value for name, value in fields.items() if name != "checksum"}):
        raise Damaged(f"{path}: is damaged (its content does not match its checksum)")
    return True


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def stamp(text: str) -> str:
    """Prepend a comment line with a checksum to a text that people may edit."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{STAMP}{digest} (if you edit them, delete this line)\n{text}"


def check_stamp(path: Path, text: str) -> bool:
    """Compare a text with the checksum in its first line.

    Returns:
        False for a text without checksum: it was edited, or written by an older version.

    Raises:
        Damaged: they differ.
    """
    if not text.startswith(STAMP):
        return False
    if text != stamp(text.partition("\n")[2]):
        raise Damaged(
            f"{path}: has changed since it was written (the checksum in its first line differs); "
            "if you edited it, delete that line; else it is damaged: restore it"
        )
    return True


def write_sums(folder: Path) -> None:
    """Write the checksums of a folder's files to its SHA256SUMS, which `sha256sum --check` reads too."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    text = stamp("".join(f"{file_digest(path)}  {path.name}\n" for path in paths))
    (folder / SUMS).write_text(text, encoding="utf-8")


def check_sums(folder: Path) -> bool:
    """Compare a folder's files with its SHA256SUMS.

    Of a list that other tools wrote, which has no checksum of its own, only the files that are there are compared.

    Returns:
        False if there is no list.

    Raises:
        Damaged: the list or a file in it has changed, or a file is missing.
    """
    path = folder / SUMS
    hint = f"restore it, or delete {path} if the change was yours"
    try:
        text = path.read_text(encoding="utf-8")
        whole = check_stamp(path, text)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: cannot be read ({error}); {hint}") from error
    expected = {row[2]: row[1] for row in map(SUM.fullmatch, text.splitlines()) if row}
    if whole and len(expected) != text.count("\n") - 1:
        raise Damaged(f"{path}: found another form than a checksum and a name in each line; {hint}")
    try:
        check_files(folder, {name: sum for name, sum in expected.items() if whole or (folder / name).is_file()})
    except Damaged as error:
        raise Damaged(f"{error}; {hint}") from error
    return True


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, so that they survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Flush a folder to disk with all that is in it, and give its files the folder's permissions.

    Some libraries write files that only their owner can read.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(folder.stat().st_mode & 0o666)
        sync(path)
    sync(folder)


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: a kill or a full disk leaves the old or the new content, never a part of it.

    Raises:
        OSError: it cannot be written; its message names the file, and the space of the part is free again.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # on a read-only disk there is no part
            part.unlink(missing_ok=True)
        if error.errno and not error.filename:  # a failed write names none
            error.filename = str(path)
        raise


class Appender:
    """A file to which whole records are appended; those that a full disk refuses follow with the next one that fits."""

    def __init__(self, path: Path):
        """Open the file, which is created if it does not exist."""
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def append(self, record: bytes) -> None:
        """Append a record after those not written before, or none of them: no record may follow a part of one.

        Raises:
            OSError: the disk is full.
        """
        self._unwritten += record
        size, rest = os.fstat(self._file.fileno()).st_size, self._unwritten
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(size)
            raise
        self._unwritten = b""

    def close(self) -> None:
        """Write what is not written, and close the file."""
        with self._file:
            self.append(b"")
