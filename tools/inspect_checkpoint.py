#!/usr/bin/env python3
"""Say what a checkpoint file is and what is in it; ``mixtransfer inspect`` is the same."""

import sys

from launch import launch

if __name__ == "__main__":
    sys.exit(launch("inspect"))
