"""``test`` from a checkout; see mixtransfer/cli/test.py."""

import sys

from mixtransfer.cli import run_command

sys.exit(run_command("test", sys.argv[1:]))
