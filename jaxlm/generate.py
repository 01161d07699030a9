"""`python -m jaxlm.generate RUN`: see `lmcore.generate.command`."""

import sys
from collections.abc import Sequence

from jaxlm.train import make_engine
from lmcore.errors import command
from lmcore.generate import command as generation

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the jaxlm engine."""
    generation.main(argv, "jaxlm", make_engine)


if __name__ == "__main__":
    sys.exit(main())
