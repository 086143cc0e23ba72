"""``train`` from a checkout; see mixtransfer/cli/train.py."""

import sys

from mixtransfer.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
