#!/usr/bin/env python3
"""Draw mixed batches, the labels of their tokens, and predictions; ``mixtransfer visualize`` is the same."""

import sys

from launch import launch

if __name__ == "__main__":
    sys.exit(launch("visualize"))
