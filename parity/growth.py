"""`python -m parity.growth`: measure how time and memory of an update grow (`parity.bench.growth`)."""

import sys

from parity.bench.growth import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
