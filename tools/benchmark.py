"""``benchmark`` from a checkout, which has what ``speed`` compares with; see benchmarks/command.py."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.command import main

    sys.exit(main(sys.argv[1:]))
