#!/usr/bin/env python3
"""Probe frozen backbones with linear heads on their maps; ``mixtransfer probe`` is the same."""

import sys

from launch import launch

if __name__ == "__main__":
    sys.exit(launch("probe"))
