"""`python -m torchlm.ablate FILE`: see `lmcore.ablation`."""

import sys
from collections.abc import Sequence

from lmcore import ablation
from lmcore.errors import command

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the torchlm train command."""
    return ablation.main(argv, "torchlm")


if __name__ == "__main__":
    sys.exit(main())
