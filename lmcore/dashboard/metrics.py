"""Read `metrics.jsonl` while it grows: each time, only what was appended since the last time.

A row counts once its line is complete. A file that shrank or was replaced is read again from its beginning. A row with
an earlier step drops those from that step on, as a resumed run does; a row with the same step as the last adds to it.
"""

import itertools
import json
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable
from itertools import chain, pairwise
from threading import Lock
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from lmcore.parsing import parse_json

__all__ = ["MetricsReader", "Series", "last_row"]

CHUNK = 4 << 20
TAIL = 64 << 10
MAX_METRICS = 200
MAX_NAME = 100
MAX_STEP = 2**53
SERIAL = itertools.count()
COMPARED = 256
"""Number of bytes before the offset that must be the same as last time."""

Column: TypeAlias = tuple[array, array]
"""Indices of the rows that have the metric, and its values."""
Series: TypeAlias = tuple[Int64[np.ndarray, " _"], Float64[np.ndarray, " _"]]
"""The same as NumPy arrays."""


class MetricsReader:
    """The rows of a `metrics.jsonl`, by columns. Threads may share it."""

    def __init__(self, open_file: Callable[[], BinaryIO]):
        """Remember how to open the file, which raises FileNotFoundError where there is none."""
        self.open_file = open_file
        self.serial = next(SERIAL)
        self.lock = Lock()
        self.generation = 0
        """Number of times that the file was read from its beginning."""
        self._reset()

    def _reset(self) -> None:
        self.generation += 1
        self.identity: tuple[int, int] | None = None
        self.offset = 0
        self.before = b""
        """The last bytes before the offset."""
        self.discarding = False
        """Whether the offset is in a line that is too long."""
        self.rejected = 0
        """Number of lines that are no rows."""
        self.steps = array("q")
        self.columns: dict[str, Column] = {}

    @property
    def version(self) -> tuple[int, int, int]:
        """What changes whenever the rows do, and is of this reader alone."""
        return self.serial, self.generation, self.offset

    def refresh(self) -> None:
        """Read what was appended. A file that has vanished has no rows."""
        with self.lock:
            try:
                with self.open_file() as file:
                    self._read(file)
            except OSError:
                if self.offset:
                    self._reset()

    def series(self, *names: str) -> tuple[Int64[np.ndarray, " N"], list[Series]]:
        """Return the step of each row, and of each metric the indices of the rows that have it with its values there.

        A value is NaN where it was not finite.
        """
        with self.lock:
            none: Column = (array("q"), array("d"))
            columns = [self.columns.get(name, none) for name in names]
            found = [(np.array(index, dtype=np.int64), np.array(values, dtype=np.float64)) for index, values in columns]
            return np.array(self.steps, dtype=np.int64), found

    def names(self) -> list[str]:
        """Return the names of all metrics, in the order in which they first appear."""
        with self.lock:
            return list(self.columns)

    def _read(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino)
        if identity != self.identity or not self._continues(file):
            self._reset()
            self.identity = identity
        file.seek(self.offset)
        rest = b""
        while chunk := file.read(CHUNK):
            chunk = rest + chunk
            end = chunk.rfind(b"\n") + 1
            self._consume(chunk[:end])
            rest = chunk[end:]
            if len(rest) > CHUNK:
                self._advance(rest)
                self.discarding, rest = True, b""

    def _continues(self, file: BinaryIO) -> bool:
        """Return whether the bytes before the offset are still there, and what they were."""
        file.seek(self.offset - len(self.before))
        return file.read(len(self.before)) == self.before

    def _advance(self, consumed: bytes) -> None:
        self.offset += len(consumed)
        self.before = (self.before + consumed[-COMPARED:])[-COMPARED:]

    def _consume(self, text: bytes) -> None:
        """Add the rows of complete lines."""
        if not text:
            return
        self._advance(text)
        lines = text.split(b"\n")[:-1]
        if self.discarding:
            self.discarding, lines = False, lines[1:]
            self.rejected += 1
        rows = [row for row in _parse(lines) if row is not None]
        self.rejected += len(lines) - len(rows)
        if not self._add_all(rows):
            for row in rows:
                self._add(row)

    def _add_all(self, rows: list[dict[str, Any]]) -> bool:
        """Add rows column by column, several times as fast as one by one; return False where they aren't so plain."""
        steps = [row["step"] for row in rows]
        if any(later <= step for step, later in pairwise([*self.steps[-1:], *steps])):
            return False
        names = [name for name in dict.fromkeys(chain.from_iterable(rows)) if name != "step"]
        if len(names) + len(self.columns) > MAX_METRICS or any(len(name) > MAX_NAME for name in names):
            return False
        first = len(self.steps)
        added = {}
        for name in names:
            index = [number for number, row in enumerate(rows, first) if name in row]
            values = [rows[number - first][name] for number in index]
            if not set(map(type, values)) <= {int, float}:
                return False
            try:
                numbers = np.array(values, dtype=np.float64)
            except OverflowError:
                return False
            numbers[~np.isfinite(numbers)] = np.nan
            added[name] = index, numbers
        self.steps.extend(steps)
        for name, (index, numbers) in added.items():
            column = self.columns.setdefault(name, (array("q"), array("d")))
            column[0].extend(index)
            column[1].frombytes(numbers.tobytes())
        return True

    def _add(self, row: dict[str, Any]) -> None:
        step, steps = row["step"], self.steps
        if not steps or step > steps[-1]:
            steps.append(step)
        elif step < steps[-1]:
            self._truncate(bisect_left(steps, step))
            steps.append(step)
        last = len(steps) - 1
        for name, value in row.items():
            if name == "step":
                continue
            column = self.columns.get(name)
            if column is None:
                if len(self.columns) >= MAX_METRICS or len(name) > MAX_NAME:
                    continue
                column = self.columns[name] = (array("q"), array("d"))
            number = _number(value)
            if number is None:
                continue
            index, values = column
            if index and index[-1] == last:
                values[-1] = number
            else:
                index.append(last)
                values.append(number)

    def _truncate(self, count: int) -> None:
        del self.steps[count:]
        for index, values in self.columns.values():
            cut = bisect_left(index, count)
            del index[cut:], values[cut:]


def last_row(file: BinaryIO) -> dict[str, float]:
    """Return the last step and the latest value of each metric; only the last 64 KiB of the file are read."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - TAIL))
    lines = file.read(TAIL).split(b"\n")
    found: dict[str, float] = {}
    for row in _parse(lines[1 if size > TAIL else 0 : -1]):
        if row is not None:
            found |= {name: number for name, value in row.items() if (number := _number(value)) is not None}
    return found


def _parse(lines: list[bytes]) -> list[dict[str, Any] | None]:
    """Return the row of each line, None for a line that is no row."""
    try:  # one call for all is several times as fast as one for each
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines) and all(map(_is_row, rows)):
            return rows
    except (ValueError, RecursionError):
        pass
    return [_parse_line(line) for line in lines]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line.decode())
    except ValueError:
        return None
    return row if _is_row(row) else None


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < MAX_STEP


def _number(value: Any) -> float | None:
    """Return a metric's value, NaN for null and for what is not finite, None for what is no number."""
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        return None
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan
