"""``tools/inspect_checkpoint.py``: describe checkpoint files."""

from __future__ import annotations

import argparse
import sys

from mixtransfer.cli.options import NAMES
from mixtransfer.errors import UserError, visible


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``inspect``."""
    main = argparse.ArgumentParser(
        prog="mixtransfer inspect",
        description="Say what checkpoint files are and what is in them: the network and how certain that is, the "
        "format of its names, weights, moving average, optimizer, settings, progress and metrics. Only headers are "
        "read.",
        epilog="Nothing in a checkpoint is run (see SECURITY.md).",
    )
    main.add_argument("src", nargs="+", metavar="SRC", help=f"checkpoint files, or their names ({NAMES})")
    main.add_argument("--ema", dest="average", action="store_true", default=None, help="look at the moving average")
    main.add_argument("--keys", action="store_true", help="list every entry with its type and shape")
    return main


def run(args: argparse.Namespace) -> int:
    """Run ``inspect``; a bad file among several does not stop the others."""
    from mixtransfer.checkpoints.describe import describe

    bad = 0
    for number, path in enumerate(args.src):
        try:
            found = describe(path, args.average)
        except UserError as error:
            if len(args.src) == 1:
                raise
            print(f"mixtransfer inspect: error: {error}", file=sys.stderr)
            bad += 1
            continue
        print(("\n" if number else "") + str(found))
        if args.keys:
            for key, entry in found.entries.items():
                print(f"  {visible(key)}  {entry.dtype}  {'x'.join(map(str, entry.shape)) or 'scalar'}")
    return 1 if bad else 0
