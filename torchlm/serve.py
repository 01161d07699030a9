"""`python -m torchlm.serve RUN`: see `lmcore.serve.command`."""

import sys
from collections.abc import Sequence

from lmcore.errors import command
from lmcore.serve import command as serving
from torchlm.slots import Slots
from torchlm.train import make_engine

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the torchlm engine."""
    serving.main(argv, "torchlm", make_engine, Slots)


if __name__ == "__main__":
    sys.exit(main())
