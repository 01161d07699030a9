"""`python -m jaxlm.evaluate RUN`: see `lmcore.run.evaluate`."""

import sys
from collections.abc import Sequence

from jaxlm.train import make_engine
from lmcore.errors import command
from lmcore.run import evaluate as evaluation

__all__ = ["main"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the jaxlm engine."""
    evaluation.main(argv, "jaxlm", make_engine, baseline_module="torchlm.baseline")


if __name__ == "__main__":
    sys.exit(main())
