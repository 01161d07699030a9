"""What a run does where its files cannot be written, on a full or read-only disk: stop, or say so and train on.

`checkpoint.on_error` decides, for checkpoints as for metrics, samples and trackers. Whether the disk can hold what the
run will keep is estimated at its start.
"""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lmcore.config import Config
from lmcore.errors import UserError, note
from lmcore.model.memory import state_bytes

__all__ = ["LastNotSaved", "NotWritten", "OnError", "Writes", "note_space", "reason_of"]

OnError = Literal["stop", "continue"]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class NotWritten(UserError):
    """A file of a run could not be written."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason
        """What the system says."""


class LastNotSaved(NotWritten):
    """The run has ended, and its last checkpoint could not be written."""

    exit_code = 1


def reason_of(error: Exception) -> str:
    """Return the message of an error, shortened, on one line; of several files that could not be copied, the first.

    What the system said comes first: Orbax puts long names before it.
    """
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        source, _, reason = error.args[0][0]
        return f"{source}: {reason}"
    text = " ".join(str(error).split())
    system = next((os.strerror(code) for code in FULL if os.strerror(code) in text[100:]), "")
    return (f"{system}: {text}" if system else text)[:200]


class Writes:
    """Writes files, and stops the run or prints a note where one cannot be written."""

    def __init__(self, on_error: OnError):
        """Set up without failures.

        Args:
            on_error: `checkpoint.on_error`.
        """
        self._on_error = on_error
        self._failing: set[str] = set()

    def attempt(self, what: str, write: Callable[[], object]) -> None:
        """Write a file; of a file that fails again and again, say so once, and once more when it succeeds.

        Args:
            what: name of the file, for messages.
            write: writes it.

        Raises:
            NotWritten: it cannot be written, and the run is to stop.
            BrokenPipeError: the reader of standard output has ended, as in `train | head`.
        """
        try:
            write()
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = reason_of(error)
            message = f"{what}: could not be written ({reason})"
            if self._on_error == "stop":
                raise NotWritten(f"{message}; free some space and resume", reason) from error
            if what not in self._failing:
                self._say(f"{message}; training goes on without it, as checkpoint.on_error says")
            self._failing.add(what)
        else:
            if what in self._failing:
                self._say(f"{what}: is written again")
            self._failing.discard(what)

    def close(self, what: str, close: Callable[[], object]) -> None:
        """Close a file at the end of the run, which nothing can stop any more: a failure is a note.

        Args:
            what: name of the file, for the message.
            close: closes it.
        """
        try:
            close()
        except BrokenPipeError:
            raise
        except OSError as error:
            self._say(f"{what}: could not be written to its end ({reason_of(error)})")

    def _say(self, message: str) -> None:
        with contextlib.suppress(OSError):  # standard error is on the same full disk: there is no other place to say it
            note(message)


def note_space(config: Config, folder: Path, start: int, existing: int) -> None:
    """Print a note if the run folder's disk cannot hold the checkpoints to come: kept, best, and being written.

    Args:
        config: config with the vocabulary size set.
        folder: run folder.
        start: number of steps already done.
        existing: number of checkpoints in the folder.
    """
    settings, steps = config.checkpoint, config.train.steps - start
    saves = math.ceil(steps / settings.every) if settings.every else min(steps, 1)
    count = min(existing + saves, settings.keep + 2) - existing
    needed, free = count * state_bytes(config), shutil.disk_usage(folder).free
    if count > 0 and needed > free:
        what = f"{count} checkpoint{'s' * (count > 1)} to come"
        note(
            f"run_dir: the disk of {folder} has {_megabytes(free)} free, and the {what} need at least "
            f"{_megabytes(needed)}; free some space, or lower checkpoint.keep"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
