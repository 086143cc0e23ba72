"""``test`` from a checkout; see mixtransfer/cli/test.py."""

import sys

from mixtransfer.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("test", sys.argv[1:]))
