"""Say what a checkpoint file is and what is in it: ``python tools/inspect_checkpoint.py --help``."""

import sys

from mixtransfer.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("inspect", sys.argv[1:]))
