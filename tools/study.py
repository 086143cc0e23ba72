#!/usr/bin/env python3
"""Run a study of backbones, pretraining and mixing, and write its page; ``mixtransfer study`` is the same."""

import sys

from launch import launch

if __name__ == "__main__":
    sys.exit(launch("study"))
