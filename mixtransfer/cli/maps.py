"""``data maps``: write the maps that accompany a classifier's images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixtransfer.cli.options import positive
from mixtransfer.errors import UserError, visible
from mixtransfer.progress import progress_line

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the parser of ``maps`` to the actions of ``data``."""
    maps = commands.add_parser(
        "maps",
        help="write the foreground, or the best classes of every cell, of a classifier's images",
        description="Write a map for every image of DIR, for recipes with OAMixer or with TokenMix's label maps. "
        "Foreground comes from the built-in scenes themselves, from --masks, or from a --teacher's tokens (TokenCut); "
        "classes come from a --teacher. Maps that are there already are kept.",
    )
    maps.add_argument("dir", metavar="DIR", help="dataset of one folder a class, or the built-in scenes")
    maps.add_argument("--kind", choices=("foreground", "classes"), default="foreground", help="default: foreground")
    maps.add_argument(
        "--masks", type=Path, metavar="DIR", help="masks, SPLIT/CLASS/NAME.png; labels 0 and 255 are background"
    )
    maps.add_argument("--teacher", metavar="FILE", help="checkpoint of a network; for classes, of DIR's classes")
    maps.add_argument("--arch", metavar="NAME", help="the teacher's architecture, e.g. deit_small")
    maps.add_argument("--side", type=positive, metavar="N", help="pixels a side that it sees (default: as made for)")
    maps.add_argument("--best", type=positive, default=5, metavar="N", help="classes kept of a cell (default 5)")
    maps.add_argument("--batch", type=positive, default=16, metavar="N", help="images at a time (default 16)")
    maps.add_argument("--folder", metavar="NAME", help="where in DIR (default: maps/KIND)")
    maps.add_argument("--trust", action="store_true", help="let the checkpoint run code (only if you know its author)")


def run(args: argparse.Namespace) -> int:
    """Write the maps; return 0."""
    from mixtransfer.datasets.folders import open_dataset
    from mixtransfer.datasets.scenes import foregrounds, read_parameters
    from mixtransfer.pretrain.map_writing import foreground_from_masks, teacher_maps, write_maps

    folder = open_dataset(args.dir, "cls")
    ours = read_parameters(folder.root.parent) is not None and folder.root.name == "cls"
    if args.masks and (args.teacher or args.kind == "classes"):
        raise UserError("--masks: they make foreground, and need no teacher; leave --teacher and --kind out")
    if bool(args.teacher) != bool(args.arch):
        raise UserError("--teacher, --arch: give both, the file and its architecture")
    if args.teacher:
        make = teacher_maps(
            args.kind, folder, args.arch, args.teacher, side=args.side, best=args.best, trust=args.trust
        )
    elif args.masks:
        make = foreground_from_masks(folder.root, args.masks)
    elif args.kind == "foreground" and ours:
        make = foregrounds(folder.root)
    else:
        raise UserError(f"{args.kind} of {args.dir}: give a --teacher with its --arch{_or_masks(args.kind)}")
    name = args.folder or f"maps/{args.kind}"
    count = write_maps(folder, name, args.kind, make, args.batch, progress_line("maps"))
    print(visible(f"{folder.root / name}: {count} maps written"))
    return 0


def _or_masks(kind: str) -> str:
    return ", or --masks" if kind == "foreground" else ""
