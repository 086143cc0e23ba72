#!/usr/bin/env python3
"""Write the built-in scenes, or check, convert and split a dataset folder; ``mixtransfer data`` is the same."""

import sys

from launch import launch

if __name__ == "__main__":
    sys.exit(launch("data"))
