"""One way to tell a user of a mistake: a single line on standard error and exit code 2, never a traceback."""

import functools
import os
import sys
from collections.abc import Callable, Sequence

__all__ = ["UserError", "command", "note"]

EXTRAS = {
    **dict.fromkeys(("jax", "jaxlib", "flax", "optax", "orbax"), "jax"),
    **dict.fromkeys(("torch", "safetensors"), "torch"),
}
"""Package -> the extra of ours that installs it."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: the field or file, the value found, the value expected, and what to do.
    """

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def note(message: str) -> None:
    """Tell a user in one line on standard error what is no mistake, but worth knowing."""
    print(f"note: {' '.join(message.split())}", file=sys.stderr, flush=True)


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Turn `main(argv)` into a command that returns an exit code and reports a `UserError` as one line."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except ModuleNotFoundError as error:  # the other side's framework, say
            if (package := (error.name or "").partition(".")[0]) not in EXTRAS:
                raise
            hint = f'pip install "twinlm[{EXTRAS[package]}]"'
            print(f"error: {package} is not installed, which this needs; run: {hint}", file=sys.stderr)
            return UserError.exit_code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of our output, `head` say, has gone: not a mistake
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:  # a full disk, say: nobody's code is wrong, and a traceback would not help
            print(f"error: {error}", file=sys.stderr)
            return 1

    return wrapped
