"""``tools/data.py``: write the built-in scenes, or check a dataset folder."""

from __future__ import annotations

import argparse

from mixtransfer.cli.options import positive, seed
from mixtransfer.errors import UserError
from mixtransfer.progress import progress_line


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``data scenes`` and ``data check``."""
    main = argparse.ArgumentParser(
        prog="mixtransfer data", description="Write the built-in scenes, or check a dataset."
    )
    commands = main.add_subparsers(dest="action", required=True, metavar="{scenes,check}")
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
        description="Open every file of a dataset in ADE20K's, COCO's or a folder-a-class layout and print a table of "
        "what is there and its problems; exit status 2 if there is one.",
    )
    check.add_argument("dir", metavar="DIR", help="the dataset's folder")
    check.add_argument(
        "--task", choices=("seg", "det", "cls"), help="check this layout only (default: all found in DIR)"
    )
    return main


def run(args: argparse.Namespace) -> int:
    """Run ``data scenes`` or ``data check``."""
    return {"scenes": _scenes, "check": _check}[args.action](args)


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

    reports = check_folder(args.dir, args.task, progress_line("checked"))
    print("\n\n".join(map(str, reports)))
    problems = sum(report.count for report in reports)
    if problems:
        raise UserError(
            f"{problems} problem{'s' if problems > 1 else ''} in {args.dir}, listed above; mend or remove these files"
        )
    print("\nno problems")
    return 0
