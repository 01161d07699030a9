"""`python -m torchlm.ablate FILE`: see `lmcore.ablation.runner`."""

import sys
from collections.abc import Sequence

from lmcore.ablation import runner as ablation
from lmcore.errors import command

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the torchlm train command."""
    return ablation.main(argv, "torchlm")


if __name__ == "__main__":
    sys.exit(main())
