"""``python -m mixtransfer COMMAND ...``, the same as ``mixtransfer COMMAND ...``."""

import sys

from mixtransfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
