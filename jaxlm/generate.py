"""`python -m jaxlm.generate RUN`: see `lmcore.generation`."""

import sys
from collections.abc import Sequence

from jaxlm.train import make_engine
from lmcore import generation
from lmcore.errors import command

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the jaxlm engine."""
    generation.main(argv, "jaxlm", make_engine)


if __name__ == "__main__":
    sys.exit(main())
