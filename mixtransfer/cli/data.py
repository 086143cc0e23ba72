"""``data``: write the built-in scenes or maps of images; check, convert or split a dataset folder."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from mixtransfer.cli import maps
from mixtransfer.cli.options import add_zero, part, positive, seed
from mixtransfer.datasets.sources import MARKER
from mixtransfer.errors import UserError, visible
from mixtransfer.progress import progress_line


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``data scenes``, ``check``, ``convert``, ``split`` and ``maps``."""
    main = argparse.ArgumentParser(
        prog="mixtransfer data", description="Write the built-in scenes; check, convert or split a dataset; map images."
    )
    commands = main.add_subparsers(dest="action", required=True, metavar="{scenes,check,convert,split,maps}")
    scenes = commands.add_parser(
        "scenes",
        help="write the built-in scenes in three layouts",
        description="Write textured scenes in the layouts of ADE20K (DIR/seg), COCO (DIR/det) and ImageNet (DIR/cls).",
    )
    scenes.add_argument("dir", metavar="DIR", help="folder to write; left as it is if it holds these scenes already")
    scenes.add_argument("--train", type=positive, default=400, metavar="N", help="training scenes (default 400)")
    scenes.add_argument("--val", type=positive, default=100, metavar="N", help="validation scenes (default 100)")
    scenes.add_argument(
        "--classify-train",
        type=positive,
        default=4800,
        metavar="N",
        help="training pictures of one class (default 4800)",
    )
    scenes.add_argument(
        "--classify-val", type=positive, default=240, metavar="N", help="validation pictures of one class (default 240)"
    )
    scenes.add_argument(
        "--size", type=positive, nargs=2, default=(128, 128), metavar=("H", "W"), help="pixels (default 128 128)"
    )
    scenes.add_argument("--seed", type=seed, default=0, metavar="S", help="another seed gives other scenes (default 0)")
    scenes.add_argument("--force", action="store_true", help="replace scenes that were written with other parameters")
    check = commands.add_parser(
        "check",
        help="check a dataset folder",
        description="Open every file of a dataset, in any layout that --data takes, and print a table of what is there "
        "and its problems; exit status 2 if there is one.",
    )
    check.add_argument("dir", metavar="DIR", help="the dataset's folder")
    check.add_argument(
        "--task", choices=("seg", "det", "cls"), help="check this layout only (default: all found in DIR)"
    )
    add_zero(check)
    for name, text in (
        ("convert", "write a dataset of another tool in our layout"),
        ("split", "the same with a split drawn anew"),
    ):
        convert = commands.add_parser(
            name,
            help=text,
            description="Write a dataset in ADE20K's, COCO's or a folder-a-class layout: masks, COCO's JSON, Pascal "
            "VOC, Cityscapes, YOLO, LabelMe (see docs/data.md). Where a dataset has no split, a fifth of its images, "
            "chosen by their names, is for validation.",
        )
        convert.add_argument("src", metavar="SRC", help="the dataset's folder")
        convert.add_argument("dst", metavar="DST", help="folder to write, which must not be there")
        convert.add_argument("--task", choices=("seg", "det", "cls"), help="task, where SRC fits several")
        convert.add_argument("--link", action="store_true", help="link the images instead of copying them")
        if name == "split":
            convert.add_argument(
                "--val", type=part, default=0.2, metavar="SHARE", help="share of images for validation (default 0.2)"
            )
        add_zero(convert)
    maps.add_parser(commands)
    return main


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    actions = {"scenes": _scenes, "check": _check, "convert": _convert, "split": _convert, "maps": maps.run}
    return actions[args.action](args)


def _scenes(args: argparse.Namespace) -> int:
    from mixtransfer.datasets.scenes import write_scenes

    root = write_scenes(
        args.dir,
        train=args.train,
        val=args.val,
        classify_train=args.classify_train,
        classify_val=args.classify_val,
        size=tuple(args.size),
        seed=args.seed,
        force=args.force,
        progress=progress_line("scenes"),
    )
    print(f"{root}: {args.train} training and {args.val} validation scenes in seg/ and det/, single classes in cls/")
    return 0


def _check(args: argparse.Namespace) -> int:
    from mixtransfer.datasets.check import check_folder

    reports = check_folder(args.dir, args.task, progress_line("checked"), args.zero_is_class)
    print("\n\n".join(map(str, reports)))
    problems = sum(report.count for report in reports)
    if problems:
        raise UserError(
            f"{problems} problem{'s' if problems > 1 else ''} in {args.dir}, listed above; mend or remove these files"
        )
    print("\nno problems")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from mixtransfer.datasets.convert import recognized, write_standard
    from mixtransfer.datasets.folders import LAYOUTS
    from mixtransfer.datasets.layouts import KNOWN, recognize

    root = Path(args.src)
    found = recognized(root) if args.task is None else {}
    # Folders of images and masks are no classes.
    tasks = [args.task] if args.task else [task for task in found if task != "cls"] or list(found)
    if len(tasks) > 1:
        raise UserError(f"{root}: fits several tasks ({', '.join(tasks)}); say --task")
    source = recognize(root, tasks[0]) if tasks else None
    if source is None:
        known = "; ".join(KNOWN[task] for task in ([args.task] if args.task else KNOWN))
        raise UserError(f"{root}: no dataset is recognized; known are {known}")
    place, drawn = Path(args.dst), getattr(args, "val", None)
    if Path(os.path.realpath(root)) in Path(os.path.realpath(place)).parents:
        raise UserError(f"{place}: lies in the dataset itself; choose another folder")
    progress = progress_line("converted")
    write_standard(source, place, zero_is_class=args.zero_is_class, copy=not args.link, share=drawn, progress=progress)
    said = json.loads((place / MARKER).read_text(encoding="utf-8"))["said"]
    print(visible(f"{place}: {source.layout}, {said}; {LAYOUTS[source.task]}"))
    for note in source.notes:
        print(visible(f"note: {note}"))
    return 0
