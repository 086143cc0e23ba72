"""Write the built-in scenes, or check a dataset folder: ``python tools/data.py --help``."""

import sys

from mixtransfer.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("data", sys.argv[1:]))
