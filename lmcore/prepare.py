"""`python -m lmcore.prepare`: convert text to token files (`lmcore.data.prepare`)."""

import sys

from lmcore.data.prepare import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
