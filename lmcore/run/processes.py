"""The processes of one run: all take the same steps, each on its part of every batch; process 0 writes and prints.

They are started by `torchrun`, or by anything that sets the same variables: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
An engine says how its framework's processes talk to each other; one process talks to nobody.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from lmcore.errors import UserError

__all__ = [
    "ALONE",
    "Alone",
    "Elsewhere",
    "Launched",
    "Lost",
    "NotJoined",
    "Processes",
    "attributed",
    "first",
    "launched",
    "said_once",
]

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MAX_PORT = 2**16 - 1
SILENT = 5.0
"""Seconds for which a process waits for process 0 to print their error."""


class NotJoined(UserError):
    """This process cannot take part in the run."""

    own = True


class Lost(UserError):
    """Another process has ended, or cannot be reached."""

    exit_code = 1
    own = True
    at_once = True

    def __init__(self, rank: int, error: Exception, lost: int | None = None):
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        which = "another process" if lost is None else f"process {lost}"
        super().__init__(f"process {rank}: {which} of this run has ended or cannot be reached ({reason})")


class Elsewhere(UserError):
    """Another process failed, and has printed why."""

    def __init__(self, code: int):
        super().__init__("")
        self.exit_code = code


@runtime_checkable
class Processes(Protocol):
    """The processes of a run. Each must call the same methods in the same order."""

    rank: int
    count: int

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes."""

    def largest(self, value: int) -> int:
        """Return the largest of an integer over all processes."""

    def broadcast(self, text: str) -> str:
        """Return the text of process 0."""


class Alone:
    """One process."""

    rank, count = 0, 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the numbers."""
        return list(values)

    def largest(self, value: int) -> int:
        """Return the number."""
        return value

    def broadcast(self, text: str) -> str:
        """Return the text."""
        return text


ALONE = Alone()


@dataclass(frozen=True)
class Launched:
    """What a launcher says about the processes of a run."""

    rank: int
    count: int
    local_rank: int
    """Number of the process on its host."""
    local_count: int
    """How many processes there are on its host."""
    address: str
    """Host of process 0."""
    port: int
    """Port on that host where process 0 listens: the one after MASTER_PORT, which `torchrun` keeps for itself."""

    def unreachable(self, error: Exception) -> UserError:
        """Return the error of a process that cannot join the others."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = f"{self.address}:{self.port}"
        return NotJoined(f"MASTER_ADDR: process {self.rank} cannot join the run at {where} ({reason})")


def launched() -> Launched | None:
    """Return what the launcher's variables say; None for one process.

    Raises:
        UserError: a variable is missing, or no number.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise NotJoined(
            f"WORLD_SIZE: found {os.environ['WORLD_SIZE']!r} without {', '.join(missing)}; start with torchrun"
        )
    try:
        rank, count, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        local, local_count = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError as error:
        raise NotJoined(f"{', '.join(NUMBERS)}: {error}; expected whole numbers") from error
    if not 0 <= rank < count:
        raise NotJoined(f"RANK: found {rank}, expected from 0 to WORLD_SIZE - 1 = {count - 1}")
    if not 0 < port < MAX_PORT:
        raise NotJoined(f"MASTER_PORT: found {port}, expected from 1 to {MAX_PORT - 1}")
    return Launched(rank, count, local, local_count, os.environ["MASTER_ADDR"], port + 1)


@contextmanager
def said_once() -> Iterator[None]:
    """Let process 0 alone print an error that all processes have, such as a wrong field; for a command that joins them.

    The others wait for that, since a launcher ends all processes where one ends.
    """
    try:
        yield
    except UserError as error:
        others = os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"
        error.silent = not str(error) or (others and not error.own)
        if error.silent:
            time.sleep(SILENT)
        raise


@contextmanager
def attributed(processes: Processes) -> Iterator[None]:
    """Name the process in errors of all but the first, which each has alone: what all have, `first` finds."""
    try:
        yield
    except UserError as error:
        if processes.rank > 0 and not error.own and str(error):
            error.own = True
            error.args = (f"process {processes.rank}: {error}",)
        raise


def first(processes: Processes, action: Callable[[], T]) -> T:
    """Do something in process 0, then in the others, which thus find what it has made; all fail where it does.

    Raises:
        Elsewhere: it failed in process 0.
    """
    if processes.rank > 0:
        if code := json.loads(processes.broadcast("")):
            raise Elsewhere(code)
        return action()
    try:
        result = action()
    except BaseException as error:
        processes.broadcast(json.dumps(getattr(error, "exit_code", 1)))
        raise
    processes.broadcast("0")
    return result
