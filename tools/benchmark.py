"""``benchmark`` from a checkout; see mixtransfer/cli/benchmark.py."""

import sys

from mixtransfer.cli import run_command

sys.exit(run_command("benchmark", sys.argv[1:]))
