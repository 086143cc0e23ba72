"""``train`` from a checkout; see mixtransfer/cli/train.py."""

import sys

from mixtransfer.cli import run_command

sys.exit(run_command("train", sys.argv[1:]))
