"""`python -m dcvit`: the command `dcvit`."""

import sys

from dcvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
