"""Convert a checkpoint between published formats and ours: ``python tools/convert.py --help``."""

import sys

from mixtransfer.cli.convert import run_process

if __name__ == "__main__":
    run_process(sys.argv[1:])
