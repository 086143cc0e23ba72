"""``benchmark`` from a checkout; see mixtransfer/cli/benchmark.py."""

import sys

from mixtransfer.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("benchmark", sys.argv[1:]))
