"""`python -m torchlm.harness RUN --tasks TASK ...`: see `lmcore.harness.command`."""

import sys
from collections.abc import Sequence

from lmcore.errors import command
from lmcore.harness import command as harness
from torchlm.train import make_engine

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the torchlm engine."""
    harness.main(argv, "torchlm", make_engine)


if __name__ == "__main__":
    sys.exit(main())
