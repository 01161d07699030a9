"""Signals that a run answers: a request to stop becomes a checkpoint."""

import signal
import sys
from types import FrameType

__all__ = ["StopRequest"]


class StopRequest:
    """Makes Ctrl-C or SIGTERM a request to stop after the current step; a second one stops at once."""

    def __enter__(self) -> "StopRequest":
        self.received: int | None = None
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        print("\nstopping after this step and saving; repeat to stop at once", file=sys.stderr, flush=True)
