#!/usr/bin/env python3
"""Measure a trained checkpoint; ``mixtransfer test`` is the same."""

import sys

from launch import launch

if __name__ == "__main__":
    sys.exit(launch("test"))
