"""`python -m torchlm.evaluate RUN`: see `lmcore.run.evaluate`."""

import sys
from collections.abc import Sequence

from lmcore.errors import command
from lmcore.run import evaluate as evaluation
from torchlm.train import make_engine

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the torchlm engine."""
    evaluation.main(argv, "torchlm", make_engine, baseline_module="torchlm.baseline")


if __name__ == "__main__":
    sys.exit(main())
