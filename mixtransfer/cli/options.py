"""Numbers that options take; what is no such number is refused before anything is imported."""

from __future__ import annotations

import argparse

__all__ = ["positive", "seed"]


def positive(text: str) -> int:
    """Read a number from 1."""
    return _number(text, 1, "from 1")


def seed(text: str) -> int:
    """Read a seed that Python, NumPy and torch all take."""
    return _number(text, 0, "from 0 to 4294967295", 2**32 - 1)


def _number(text: str, least: int, form: str, most: float = float("inf")) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number {form}")
    return int(text)
