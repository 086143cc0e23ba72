#!/usr/bin/env python3
"""Train a classifier, segmentor or detector from a config; ``mixtransfer train`` is the same."""

import sys

from launch import launch

if __name__ == "__main__":
    sys.exit(launch("train"))
