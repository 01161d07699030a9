"""Report a user's mistake as one line on standard error with exit code 2, never as a traceback."""

import argparse
import contextlib
import functools
import io
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

__all__ = ["NotFinite", "OneLineParser", "UserError", "command", "is_unicode", "note", "printable", "shown"]

EXTRAS = {
    **dict.fromkeys(("jax", "jaxlib", "flax", "optax", "orbax"), "jax"),
    **dict.fromkeys(("torch", "safetensors"), "torch"),
    "lm_eval": "eval",
    **dict.fromkeys(("prometheus_client", "pydantic", "starlette", "uvicorn"), "serve"),
}
"""Package -> the extra of this project that installs it."""


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one line: the field or file, the value found, the value expected, and what to do.
    """

    exit_code = 2
    own: bool = False
    """Whether this process alone has the error, of a run with several."""
    silent: bool = False
    """Whether another process prints the error."""
    at_once: bool = False
    """Whether the process ends without its usual end, which would wait for processes that are gone."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.split())))


class NotFinite(UserError):
    """A model's weights or outputs are NaN or infinite, which is no mistake in the command."""

    exit_code = 1


def shown(value: object, limit: int = 200) -> str:
    """Format a value for a message: its `repr` on one line, with the middle left out if it is too long.

    Args:
        value: the value.
        limit: maximum number of characters that are shown in full.
    """
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 4 :]}"


def printable(text: str) -> str:
    """Escape control characters, which a file's name may contain and by which it could command a terminal."""
    control = {c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t"}
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in control}) if control else text


def is_unicode(text: str) -> bool:
    """Return whether text can be encoded in UTF-8, so that it contains no lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@contextlib.contextmanager
def _printable() -> Iterator[None]:
    """Make standard output replace what it cannot encode by question marks, so that printing never ends a run."""
    stream = sys.stdout
    errors = getattr(stream, "errors", None)
    if errors != "strict" or not isinstance(stream, io.TextIOWrapper):
        yield
        return
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)


class OneLineParser(argparse.ArgumentParser):
    """The standard library's parser, with one-line errors; it needs no other package."""

    def error(self, message: str) -> NoReturn:
        """Raise the parser's message as a user's mistake."""
        raise UserError(message)


def note(message: str) -> None:
    """Print a note for the user in one line on standard error: no mistake, but worth knowing."""
    print(f"note: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Decorate `main(argv)` so that it returns an exit code and reports a `UserError` as one line."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            with _printable():
                return main(argv) or 0
        except UserError as error:
            if not error.silent:
                print(f"error: {error}", file=sys.stderr)
            if error.at_once and argv is None:  # this process is the command
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(error.exit_code)
            return error.exit_code
        except ModuleNotFoundError as error:  # the other twin's framework, say
            if (package := (error.name or "").partition(".")[0]) not in EXTRAS:
                raise
            hint = f'pip install "twinlm[{EXTRAS[package]}]"'
            print(f"error: {package} is not installed, which this needs; run: {hint}", file=sys.stderr)
            return UserError.exit_code
        except KeyboardInterrupt:
            if argv is None:  # this process is the command and ends now: Ctrl-C again needs no traceback
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of the output, such as `head`, has ended: not a mistake
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:  # a full disk, say: not a fault of the code, and a traceback would not help
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 1

    return wrapped
