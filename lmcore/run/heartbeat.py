"""A heartbeat of every process of a run, so that one that hangs is noticed, and one that is gone is named.

Each process counts up a number of its own on a board that process 0 keeps; each framework has such a board. Process 0
watches all numbers; the others watch that of process 0, and ask for what it has found. One thread counts and asks;
another ends the process where it must, since a board whose process hangs does not answer at all.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lmcore.run.processes import Lost

__all__ = ["SILENCE", "Board", "Heartbeat"]

BEAT = 1.0
"""Seconds between two counts."""
SILENCE = 30.0
"""Seconds without a count after which a process is given up."""
ENDED = 5.0
"""Seconds for which process 0 may be gone before that is an error: this process may be about to end too."""
LOST = "lost"
"""Key of the process that process 0 has given up."""


@runtime_checkable
class Board(Protocol):
    """Texts by key, the same for all processes; both methods raise RuntimeError where process 0 is gone."""

    def set(self, key: str, text: str) -> None:
        """Set or replace a text."""

    def read(self, keys: Sequence[str]) -> list[str]:
        """Return texts, empty where none is set."""


class Heartbeat:
    """Counts for one process, and watches others, until it is stopped.

    Args:
        rank: of this process.
        count: number of processes.
        counting: the board, for a thread.
        asking: the board, for the main thread; another connection where one cannot serve both.
    """

    def __init__(self, rank: int, count: int, counting: Board, asking: Board):
        self.rank, self.count, self.counting, self.asking = rank, count, counting, asking
        self.stopped = threading.Event()
        watched = range(1, count) if rank == 0 else range(1)
        self.counts, self.seen = dict.fromkeys(watched, ""), dict.fromkeys(watched, time.monotonic())
        self.lost: int | None = None
        self.closed: float | None = None
        self.counting.set(_key(rank), "0")
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._count, self._watch)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        self.stopped.set()
        for thread in self.threads:
            thread.join(ENDED)

    def missing(self) -> int | None:
        """Return the first process that has stopped counting; None if all go on. It takes a few seconds."""
        if self.lost is not None:
            return self.lost
        keys = [_key(rank) for rank in range(self.count)]
        try:
            before = self.asking.read(keys)
            time.sleep(3 * BEAT)
            after = self.asking.read(keys)
        except RuntimeError:  # the board is gone, and with it process 0
            return 0
        silent = [rank for rank, (old, new) in enumerate(zip(before, after, strict=True)) if old == new]
        lost = next((rank for rank in silent if rank != self.rank), None)
        if lost is not None and self.rank == 0:
            self._tell(lost)
        return lost

    def _count(self) -> None:
        count, keys = 0, [_key(rank) for rank in self.seen]
        while not self.stopped.wait(BEAT):
            count += 1
            try:
                self.counting.set(_key(self.rank), str(count))
                *counts, lost = self.counting.read([*keys, LOST])
                for rank, found in zip(self.seen, counts, strict=True):
                    if found != self.counts[rank]:
                        self.counts[rank], self.seen[rank] = found, time.monotonic()
                if lost and self.rank > 0:  # process 0 knows
                    self.lost = int(lost)
            except RuntimeError:
                self.closed = time.monotonic()
                return

    def _watch(self) -> None:
        last = time.monotonic()
        while not self.stopped.wait(BEAT):
            now = time.monotonic()
            if now - last > SILENCE / 2:  # this process was stopped, and perhaps all were
                self.seen = dict.fromkeys(self.seen, now)
            last = now
            silent = [rank for rank, time_seen in self.seen.items() if now - time_seen > SILENCE]
            if self.closed is not None and now - self.closed > ENDED:
                self._end(0, "its connection is closed")
            elif silent or self.lost is not None:
                lost = silent[0] if self.lost is None else self.lost
                self._end(lost, f"it gave no sign of life for {SILENCE:.0f} seconds" if silent else "says process 0")

    def _end(self, lost: int, reason: str) -> None:
        """End this process, whose main thread waits for one that is lost."""
        error = Lost(self.rank, TimeoutError(reason), lost)
        print(f"error: {error}", file=sys.stderr, flush=True)
        if self.rank == 0:
            self._tell(lost)
        os._exit(error.exit_code)

    def _tell(self, lost: int) -> None:
        """Tell the others, and give them time to ask."""
        self.asking.set(LOST, str(lost))
        time.sleep(3 * BEAT)


def _key(rank: int) -> str:
    return f"beat/{rank}"
