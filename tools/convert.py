"""Convert a checkpoint between published formats and ours: ``python tools/convert.py --help``."""

import sys

from mixtransfer.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("convert", sys.argv[1:]))
