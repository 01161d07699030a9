"""`python -m lmcore.dashboard`."""

import sys

from lmcore.dashboard.command import main

if __name__ == "__main__":
    sys.exit(main())
