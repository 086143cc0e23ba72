"""Draw mixed batches, the labels of their tokens, and predictions: ``python tools/visualize.py --help``."""

import sys

from mixtransfer.cli import run_command

sys.exit(run_command("visualize", sys.argv[1:]))
