"""`python -m parity.serve`."""

import sys

from parity.serve.command import main

if __name__ == "__main__":
    sys.exit(main())
