"""`python -m jaxlm.serve RUN`: see `lmcore.serve.command`."""

import sys
from collections.abc import Sequence

from jaxlm.slots import Slots
from jaxlm.train import make_engine
from lmcore.errors import command
from lmcore.serve import command as serving

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the jaxlm engine."""
    serving.main(argv, "jaxlm", make_engine, Slots)


if __name__ == "__main__":
    sys.exit(main())
