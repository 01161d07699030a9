"""Stop strings, which may begin in one token and end in another."""

from collections.abc import Sequence

__all__ = ["Stopper"]


class Stopper:
    """Passes text on up to the first stop string, and holds back what may be the beginning of one.

    The first is the one that is complete first, and of two that end together the longer, so that the result does not
    depend on how the text is divided.
    """

    def __init__(self, stops: Sequence[str]):
        """Look for these strings, none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """Whether a stop string was found; nothing is passed on after it."""

    def feed(self, text: str) -> str:
        """Append text and return what can be passed on."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        passed = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[passed:]
        return text[:passed]

    def flush(self) -> str:
        """Return what is held back: the text has ended, and no stop string with it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that is a beginning of a stop string, but not all of it."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
