"""Read local files as documents: `.txt` with a separator, `.jsonl` and `.parquet`, each also as `.gz` or `.zst`.

A document is yielded in pieces of bounded size, so that memory use does not grow with the file, even if the whole file
is a single document. Text is normalized for training: the byte-order mark is removed, and every line ends with a line
feed.
"""

import codecs
import contextlib
import gzip
import io
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from lmcore.errors import UserError
from lmcore.parsing import MAX_JSON_BYTES, parse_json

__all__ = ["FORMATS", "Piece", "check_format", "document", "read_documents"]

FORMATS = (".txt", ".jsonl", ".parquet")
PACKINGS = (".gz", ".zst")

PARQUET = b"PAR1"
"""Beginning of a Parquet file."""

READ_BYTES = 1 << 20
ZST_BYTES = 1 << 10
"""Bytes of a .zst file to decompress at once: to at most 32 MB, since a block of four bytes may stand for 128 KiB."""
ROWS = 64
"""Maximum number of Parquet rows to read at once; few, since rows that share a text in the file do not in memory."""
PIECE = 1 << 16
"""Minimum number of characters of a piece, except the last; small enough to share a long document among cores."""
SEARCH = 1 << 14
"""Number of further characters within which a place to cut is searched for."""

# Byte-level BPE never merges over these places, since its pre-tokenizer always splits there; pieces cut here have the
# tokens of the whole document.
AFTER_NEWLINE = re.compile(r"(?<=\S)\n(?=\S)")
BEFORE_SPACE = re.compile(r"(?<=\S) (?=\S)")


class Piece(NamedTuple):
    """A part of a document, at most PIECE + SEARCH characters long."""

    text: str
    ends: bool
    """Whether the document ends here."""
    where: str = ""
    """File and line, or data set and row, of a conversation, for messages."""


Read = Callable[[Any, str, str], Iterator[Piece]]
"""Makes pieces of a field's value, given where it is and the field's name, for messages."""


def document(text: str, where: str) -> Iterator[Piece]:
    """Cut a whole document into pieces; a blank document yields none.

    Args:
        text: the document.
        where: file and line, or data set and row, for the error message.

    Raises:
        UserError: the text contains half of a surrogate pair, which JSON allows and UTF-8 does not.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place = f"U+{ord(text[error.start]):04X} at character {error.start}"
            raise UserError(f"{where}: found half a surrogate pair ({place}), expected Unicode text") from error
    if text and not text.isspace():
        yield from _pieces(text)


def check_format(path: Path) -> tuple[str, str]:
    """Return (format, packing) of a file by its name, such as (".txt", ".gz") or (".jsonl", "").

    Raises:
        UserError: the format is not supported.
    """
    packing = path.suffix.lower() if path.suffix.lower() in PACKINGS else ""
    kind = Path(path.stem if packing else path.name).suffix.lower()
    if kind not in FORMATS:
        expected = f"{', '.join(FORMATS)}, or one of these with {' or '.join(PACKINGS)}"
        raise UserError(f"{path}: found the ending {path.suffix!r}, expected {expected}; rename or convert the file")
    return kind, packing


def read_documents(
    path: Path, *, separator: str, text_field: str, read: Read | None = None, setting: str = "data.text_field"
) -> Iterator[Piece]:
    """Yield the pieces of all documents in one file.

    Args:
        path: the file.
        separator: string between two documents of a .txt file; newlines next to it belong to it. If it is empty or does
            not occur, the whole file is one document, with all its newlines.
        text_field: field or column that holds the text, for .jsonl and .parquet.
        read: makes pieces of what that field holds; None expects text.
        setting: config field that names it, for messages.

    Raises:
        UserError: the file cannot be read; the message names the line, row or byte.
    """
    kind, packing = check_format(path)
    with _opened(path, packing) as file:
        if kind == ".txt":
            yield from _read_text(file, path, separator)
        elif kind == ".jsonl":
            yield from _read_jsonl(file, path, text_field, read or _value, setting)
        else:
            yield from _read_parquet(file, path, packing, text_field, read or _value, setting)


@contextlib.contextmanager
def _opened(path: Path, packing: str) -> Iterator[io.BufferedIOBase]:
    """Open a file, decompressing as it is read.

    Errors are converted here for all readers: a damaged archive is only noticed while it is being read.
    """
    failures: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    try:
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(path.open("rb"))
            file: io.BufferedIOBase = plain
            if packing == ".gz":
                file = stack.enter_context(gzip.GzipFile(fileobj=plain))
            elif packing == ".zst":
                try:
                    import zstandard
                except ImportError as error:
                    raise UserError(f'{path}: .zst files need zstandard; pip install "twinlm[hub]"') from error
                failures += (zstandard.ZstdError,)
                file = stack.enter_context(io.BufferedReader(_Frames(plain, zstandard.ZstdDecompressor()), READ_BYTES))
            yield file
    except failures as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


class _Frames(io.RawIOBase):
    """The content of a .zst file, which may be several frames, as parallel compressors write.

    Unlike the library's reader, which takes a file that was cut short for a whole one, it raises EOFError there.
    """

    def __init__(self, file: io.BufferedIOBase, decompressor: Any):
        self._file, self._decompressor = file, decompressor
        self._frame: Any = None
        """Decompresses the current frame; None between frames."""
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._file.read(ZST_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end of a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = self._frame.unused_data
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def _read_text(file: io.BufferedIOBase, path: Path, separator: str) -> Iterator[Piece]:
    """Split a text file at the separator, block by block.

    Newlines next to a separator belong to it, and so do those at the end of a file that has one. A file without any
    separator keeps all its newlines.
    """
    rest = ""  # text of the current document that has not been yielded
    separated = begun = False  # whether a separator has been seen; whether part of the current document was yielded
    for block in _decoded(file, path):
        text = rest + block  # so that a separator across two blocks is found
        parts = text.split(separator) if separator else [text]
        for part in parts[:-1]:
            yield from _close(part.strip("\n") if separated and not begun else part.rstrip("\n"), begun)
            separated, begun = True, False
        rest = parts[-1].lstrip("\n") if separated and not begun else parts[-1]
        # The last len(separator) characters stay behind, where the next block may complete a separator.
        while len(rest) > PIECE + SEARCH + len(separator):
            cut = _cut(rest, 0)
            yield Piece(rest[:cut], ends=False)
            rest, begun = rest[cut:], True
    yield from _close(rest.rstrip("\n") if separated else rest, begun)


def _close(text: str, begun: bool) -> Iterator[Piece]:
    """Yield the rest of a document; a blank document yields nothing, but one that has begun must be ended."""
    if begun or (text and not text.isspace()):
        yield from _pieces(text)


def _pieces(text: str) -> Iterator[Piece]:
    start = 0
    while len(text) - start > PIECE + SEARCH:
        cut = _cut(text, start)
        yield Piece(text[start:cut], ends=False)
        start = cut
    yield Piece(text[start:], ends=True)


def _cut(text: str, start: int) -> int:
    """Return where to cut the piece that begins at `start`: after a newline, else before a space, else anywhere."""
    begin, end = start + PIECE, start + PIECE + SEARCH
    if match := AFTER_NEWLINE.search(text, begin, end):
        return match.end()
    if match := BEFORE_SPACE.search(text, begin, end):
        return match.start()
    return begin


def _decoded(file: io.BufferedIOBase, path: Path) -> Iterator[str]:
    """Decode UTF-8 block by block, without the byte-order mark and with every line end as a line feed.

    Both decoders are incremental: a block may end within a character, or between a carriage return and its line feed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, block = 0, b"-"  # not empty, to enter the loop
    while block:  # the empty block at the end flushes both decoders
        block = file.read(READ_BYTES)
        held_back = len(decoder.getstate()[0])  # bytes of an incomplete character, which error.start counts too
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _invalid_utf8(path, offset - held_back + error.start) from error
        if offset == 0:
            _check_not_utf16(path, block)
            text = text.removeprefix("\ufeff")
        offset += len(block)
        yield newlines.decode(text, final=not block)


def _check_not_utf16(path: Path, block: bytes) -> None:
    """Raise UserError for ASCII in UTF-16 or UTF-32: it is valid UTF-8, with zeros between the characters."""
    begin = block[:SEARCH]
    for width in (2, 4):
        phases = [begin[phase::width] for phase in range(width)]
        written = [phase for phase in phases if any(phase)]
        if len(begin) >= 4 * width and len(written) == 1 and 0 not in written[0]:
            raise UserError(f"{path}: found UTF-{8 * width}, expected UTF-8 text; convert the file")


def _invalid_utf8(path: Path, offset: int) -> UserError:
    return UserError(f"{path}: found invalid UTF-8 at byte {offset}, expected UTF-8 text; convert the file")


def _read_jsonl(file: io.BufferedIOBase, path: Path, text_field: str, read: Read, setting: str) -> Iterator[Piece]:
    offset = 0
    for number, line in enumerate(iter(lambda: file.readline(MAX_JSON_BYTES + 1), b""), 1):
        where = f"{path}, line {number}"
        if len(line) > MAX_JSON_BYTES:  # else a small .gz could fill the memory
            raise UserError(f"{where}: found more than {MAX_JSON_BYTES:,} bytes, expected a shorter line; split it")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise _invalid_utf8(path, offset + error.start) from error
        offset += len(line)
        text = text.removeprefix("\ufeff") if number == 1 else text
        if not text.strip():
            continue
        try:
            record = parse_json(text)
        except ValueError as error:
            raise UserError(f"{where}: found invalid JSON ({error}), expected one object per line") from error
        if not isinstance(record, dict):
            raise UserError(f"{where}: found {type(record).__name__}, expected a JSON object with field {text_field!r}")
        if text_field not in record:
            raise UserError(_no_field(where, list(record), text_field, setting))
        yield from read(record[text_field], where, text_field)


def _read_parquet(
    file: io.BufferedIOBase, path: Path, packing: str, text_field: str, read: Read, setting: str
) -> Iterator[Piece]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f'{path}: .parquet files need pyarrow; pip install "twinlm[hub]"') from error
    with contextlib.ExitStack() as stack:
        if packing:  # Parquet is read from its end, so it needs a file that can seek
            file = _unpacked(file, path, stack.enter_context(tempfile.TemporaryFile()))
        try:
            table = pyarrow.parquet.ParquetFile(file)
            if text_field not in table.schema_arrow.names:
                raise UserError(_no_field(str(path), table.schema_arrow.names, text_field, setting))
            row = 0
            for batch in table.iter_batches(batch_size=_rows_at_once(table, text_field), columns=[text_field]):
                for value in batch.column(0):
                    yield from read(value.as_py(), f"{path}, row {row}", text_field)
                    row += 1
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: cannot be read as Parquet ({error})") from error


def _unpacked(file: io.BufferedIOBase, path: Path, unpacked: Any) -> io.BufferedIOBase:
    """Fill a temporary file with the content of a packed one, if that begins like a Parquet file."""
    begin = file.read(len(PARQUET))
    if begin != PARQUET:  # before a small file fills the disk
        raise UserError(f"{path}: cannot be read as Parquet (found {begin!r}, expected {PARQUET!r} at its beginning)")
    unpacked.write(begin)
    shutil.copyfileobj(file, unpacked, READ_BYTES)
    return cast(io.BufferedIOBase, unpacked)


def _rows_at_once(table: Any, text_field: str) -> int:
    """Return the number of rows of a Parquet file that have a few megabytes of text on average."""
    metadata = table.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    size = max((c.total_uncompressed_size for c in columns if c.path_in_schema == text_field), default=0)
    rows = max((group.num_rows for group in groups), default=0)
    return max(1, min(ROWS, 8 * READ_BYTES * rows // max(1, size)))


def _no_field(where: str, names: list[str], text_field: str, setting: str) -> str:
    return f"{where}: found fields {', '.join(names)}, expected {text_field!r}; set {setting}"


def _value(value: object, where: str, text_field: str) -> Iterator[Piece]:
    if isinstance(value, str):
        yield from document(value, where)
    elif value is not None:
        raise UserError(f"{where}: found {type(value).__name__} in {text_field!r}, expected text; set data.text_field")
