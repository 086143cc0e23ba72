"""Draw mixed batches, the labels of their tokens, and predictions: ``python tools/visualize.py --help``."""

import sys

from mixtransfer.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("visualize", sys.argv[1:]))
