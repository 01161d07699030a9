"""`python -m parity.check`."""

import sys

from parity.check.command import main

if __name__ == "__main__":
    sys.exit(main())
