"""`python -m parity.plan`."""

import sys

from parity.plan.command import main

if __name__ == "__main__":
    sys.exit(main())
