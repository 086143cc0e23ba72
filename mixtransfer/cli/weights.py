"""``weights``: list the papers' official files."""

from __future__ import annotations

import argparse

from mixtransfer.errors import UserError

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the options of ``weights``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer weights",
        description="List the papers' official files: architecture, names of entries, task, the score printed beside"
        " the file, and the address that the authors' page gives. Every command that takes a checkpoint takes"
        " weights://NAME, which fetches it.",
    )
    options.add_argument(
        "word", nargs="?", default="", metavar="WORD", help="list those that have this word in their row only"
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from mixtransfer.checkpoints.published import list_published

    found = list_published(args.word)
    if not found:
        raise UserError(f"no file of the papers has {args.word!r} in its row; 'mixtransfer weights' lists all")
    rows = [("name", "architecture", "names", "task", "published", "address")]
    rows += [(e.name, e.arch, e.names, e.task, e.score, e.address) for e in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\npublished: what the authors print beside the file; files behind a page of drive.google.com go by hand")
    return 0
