#!/usr/bin/env python3
"""Convert a checkpoint between published formats and ours; ``mixtransfer convert`` is the same."""

import sys

from launch import launch

if __name__ == "__main__":
    sys.exit(launch("convert"))
