"""Signals that a run answers: a request to stop or to save becomes a checkpoint.

Python runs the handler of a signal in the main thread, and only between two of its own instructions: not while XLA
compiles or a library writes. What cannot wait for that, the end of the grace period and a repeated Ctrl-C, is left to a
thread, which `signal.set_wakeup_fd` tells of each signal at once. It ends the process without any cleanup, as a kill
would, which no file minds: each is complete or absent.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from types import FrameType

__all__ = ["SaveRequest", "StopRequest"]

SHOW_CURSOR = b"\x1b[?25h"
"""Terminal code that undoes what a progress bar does to the cursor."""


class StopRequest:
    """Makes Ctrl-C or SIGTERM a request to stop after the current step; Ctrl-C after that stops at once."""

    def __init__(self, grace: float = 0.0, is_command: bool = False, says: bool = True):
        """Prepare the handlers, which hold inside a `with` statement.

        Args:
            grace: seconds from SIGTERM until the process ends, unless `all_saved` was called; 0 waits without limit.
            is_command: whether the process is for this run only, so that Ctrl-C may end it even while a library is at
                work; if not, KeyboardInterrupt is raised.
            says: whether to print that the run will stop; of several processes, the first does.
        """
        self.grace, self.is_command, self.says = grace, is_command, says
        self.received: int | None = None
        self._all_saved = False

    def __enter__(self) -> "StopRequest":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.is_command:  # the process is about to end: Ctrl-C now needs no traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.set_wakeup_fd(self._wakeup_before)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def all_saved(self) -> None:
        """Lift the limit of the grace period: the checkpoint is on disk."""
        self._all_saved = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        elif number == signal.SIGINT and not self.is_command:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Answer in the thread what cannot wait for the main thread, until the other end of the socket is closed."""
        stops, deadline = 0, None
        while True:
            seconds = None if deadline is None else min(1000.0, max(0.0, deadline - time.monotonic()))
            if not select.select([self._reader], [], [], seconds)[0]:
                if deadline is not None and time.monotonic() >= deadline and not self._all_saved:
                    what = f"the checkpoint could not be completed within checkpoint.grace, {self.grace:g} s"
                    _end(f"note: {what}; stopped without it, earlier checkpoints are intact", 128 + signal.SIGTERM)
                deadline = None if self._all_saved else deadline
                continue
            numbers = self._reader.recv(100)
            if not numbers:
                return
            for number in numbers:
                stops += number in (signal.SIGINT, signal.SIGTERM)
                if number == signal.SIGINT and stops > 1 and self.is_command:
                    _end("interrupted", 128 + signal.SIGINT)
                if number == signal.SIGTERM and self.grace > 0 and deadline is None:
                    deadline = time.monotonic() + self.grace
                if number in (signal.SIGINT, signal.SIGTERM) and stops == 1 and self.says:
                    message = "\nstopping after this step and saving; Ctrl-C stops at once"
                    print(message, file=sys.stderr, flush=True)


def _end(message: str, code: int) -> None:
    """Print a line and end the process, whatever its other threads are doing."""
    if os.isatty(1):
        os.write(1, SHOW_CURSOR)
    os.write(2, f"\n{message}\n".encode() if os.isatty(2) else f"{message}\n".encode())
    os._exit(code)


class SaveRequest:
    """Makes SIGUSR1 a request to save a checkpoint after the current step; Windows has no such signal."""

    def __init__(self, is_command: bool = False):
        """Prepare the handler, which holds inside a `with` statement.

        Args:
            is_command: whether the process is for this run only: a signal that comes too late is then ignored, where it
                would end the process.
        """
        self.is_command = is_command
        self._received = False

    def __enter__(self) -> "SaveRequest":
        if hasattr(signal, "SIGUSR1"):
            self._before = signal.signal(signal.SIGUSR1, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN if self.is_command else self._before)

    def take(self) -> bool:
        """Return whether a checkpoint was requested since the last call."""
        received, self._received = self._received, False
        return received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True
