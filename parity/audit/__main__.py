"""`python -m parity.audit`."""

import sys

from parity.audit.command import main

if __name__ == "__main__":
    sys.exit(main())
