"""`python -m parity.convert`."""

import sys

from parity.convert.conversion import main

if __name__ == "__main__":
    sys.exit(main())
