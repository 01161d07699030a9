"""`python -m jaxlm.train`: train the decoder in JAX. Without arguments, the quickstart.

The framework is loaded only after the command line has been read, so that `--help` and mistakes answer at once.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmcore.config import Config
from lmcore.config.cli import parse
from lmcore.errors import command
from lmcore.run.processes import said_once

if TYPE_CHECKING:
    from jaxlm.engine import Engine

__all__ = ["main", "make_engine"]


def make_engine(config: Config) -> "Engine":
    """Return the jaxlm engine for a config whose vocabulary size is known."""
    from jaxlm.engine import Engine

    return Engine(config)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says."""
    with said_once():
        config = parse(argv, prog="python -m jaxlm.train", description="Train the decoder in JAX.")
        from jaxlm.engine import Engine
        from lmcore.run import trainer

        return trainer.run(config, Engine, is_command=argv is None)


if __name__ == "__main__":
    sys.exit(main())
