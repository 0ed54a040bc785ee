"""`python -m backstream` is the command `backstream`."""

import sys

from backstream.cli import main

if __name__ == "__main__":
    sys.exit(main())
