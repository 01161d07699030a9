"""`python -m parity.bench`."""

import sys

from parity.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
