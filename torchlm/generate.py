"""`python -m torchlm.generate RUN`: see `lmcore.generation`."""

import sys
from collections.abc import Sequence

from lmcore import generation
from lmcore.errors import command
from torchlm.train import make_engine

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the torchlm engine."""
    generation.main(argv, "torchlm", make_engine)


if __name__ == "__main__":
    sys.exit(main())
