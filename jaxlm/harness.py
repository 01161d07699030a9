"""`python -m jaxlm.harness RUN --tasks TASK ...`: see `lmcore.harness.command`."""

import sys
from collections.abc import Sequence

from jaxlm.train import make_engine
from lmcore.errors import command
from lmcore.harness import command as harness

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the jaxlm engine."""
    harness.main(argv, "jaxlm", make_engine)


if __name__ == "__main__":
    sys.exit(main())
