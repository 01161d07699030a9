"""`python -m torchlm.generate RUN`: see `lmcore.generate.command`."""

import sys
from collections.abc import Sequence

from lmcore.errors import command
from lmcore.generate import command as generation
from torchlm.train import make_engine

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the torchlm engine."""
    generation.main(argv, "torchlm", make_engine)


if __name__ == "__main__":
    sys.exit(main())
