#!/usr/bin/env python3
"""``benchmark`` from a checkout, which has what ``speed`` compares with; see benchmarks/command.py."""

import sys
from pathlib import Path

from launch import launch

if __name__ == "__main__":
    if sys.argv[1:2] != ["speed"]:
        sys.exit(launch("benchmark"))
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(launch("benchmark", "benchmarks.command"))
