"""``tools/convert.py``: convert a checkpoint between published formats and ours, with proof."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from mixtransfer.cli.options import NAMES, positive
from mixtransfer.errors import UserError, visible

FORMATS = (
    "mixtransfer", "official", "timm", "mmpretrain", "mmdet", "mmseg", "torchvision", "transformers", "detectron2"
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``convert``."""
    main = argparse.ArgumentParser(
        prog="mixtransfer convert",
        description="Convert a checkpoint between published formats and ours. Every entry is mapped, resized, dropped "
        "by a named rule, or an error; the result is loaded, run, converted back and, where a library has the network, "
        "compared with it before it is written. DST is written with a report beside it, DST with the suffix .json.",
        epilog="Nothing in a checkpoint is run, unless with --trust (see SECURITY.md).",
    )
    main.add_argument(
        "src",
        nargs="+",
        metavar="SRC",
        help=f"checkpoint of a backbone, classifier, detector or segmentor, a file or its name ({NAMES});"
        " several, a folder, or a list (.txt)",
    )
    main.add_argument(
        "dst", metavar="DST", help="file to write (.safetensors, .pth or .pt), or a folder of .safetensors"
    )
    main.add_argument("--arch", metavar="A", help="architecture, e.g. swin_tiny (default: recognized)")
    main.add_argument(
        "--from",
        dest="source",
        default="auto",
        metavar="F",
        help=f"format of SRC: auto (default), {', '.join(FORMATS)}",
    )
    main.add_argument(
        "--to", dest="target", default="mixtransfer", metavar="T", help="format of DST (default mixtransfer)"
    )
    main.add_argument("--force", action="store_true", help="replace a destination that exists")
    main.add_argument("--no-verify", dest="verify", action="store_false", help="write without proof")
    main.add_argument("--allow-nonfinite", action="store_true", help="accept NaN and infinite weights")
    main.add_argument("--trust", action="store_true", help="let SRC run code; only if you know its author")
    average = main.add_mutually_exclusive_group()
    average.add_argument("--ema", dest="average", action="store_true", help="take the moving average of the weights")
    average.add_argument("--raw", dest="average", action="store_false", help="take the raw weights, never the average")
    main.set_defaults(average=None)
    main.add_argument(
        "--drop", action="append", default=[], type=_regex, metavar="REGEX", help="leave these entries behind too"
    )
    main.add_argument("--container", metavar="KEY", help="key that holds the entries of a .pth ('' for none)")
    main.add_argument("--hash", dest="hashed", action="store_true", help="put the content's hash into DST's name")
    main.add_argument(
        "--img-size", type=_size, metavar="N or HxW", help="resample position tables to images of this size"
    )
    main.add_argument("--window", type=positive, metavar="N", help="resample relative-position tables to windows of N")
    main.add_argument(
        "--in-channels", type=positive, default=3, metavar="N", help="1 for grey, 4 for color and depth, …"
    )
    return main


def run(args: argparse.Namespace) -> int:
    """Run ``convert``."""
    from mixtransfer.checkpoints.fetch import located
    from mixtransfer.checkpoints.headers import is_url

    args.src = [str(located(source)) if is_url(source) else source for source in args.src]

    from mixtransfer.checkpoints.convert import ConvertOptions, convert_file

    given = {key: value for key, value in vars(args).items() if key not in ("src", "dst")}
    options = ConvertOptions(**{**given, "drop": tuple(args.drop)})
    sources = [Path(source) for source in args.src]
    if len(sources) == 1 and not sources[0].is_dir() and sources[0].suffix != ".txt" and not Path(args.dst).is_dir():
        print(convert_file(sources[0], args.dst, options))
        return 0
    return _many([path for source in sources for path in _listed(source)], Path(args.dst), options)


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def _size(text: str) -> int | tuple[int, int]:
    sides = tuple(positive(side) for side in text.split("x"))
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}: give N or HxW")
    return sides if len(sides) == 2 else sides[0]


def _listed(source: Path) -> list[Path]:
    """Return the files that a list names, one a line, from where the list is; anything else as it is."""
    if source.suffix != ".txt":
        return [source]
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read as a list of names ({error})") from None
    return [source.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _many(sources: list[Path], folder: Path, options) -> int:
    from mixtransfer.checkpoints.convert import convert_many, plan

    total, start, failed = len(plan(sources, folder, ".safetensors")), time.monotonic(), []
    for number, (source, result) in enumerate(convert_many(sources, folder, options), 1):
        left = (time.monotonic() - start) / number * (total - number)
        if isinstance(result, UserError):
            failed.append(result)
            text = "FAILED"
        else:
            text = f"{result.arch}, {' -> '.join(result.formats)}, {result.file['file']}"
        print(
            f"[{number}/{total}] {visible(source)}: {visible(text)}"
            + (f" ({left:.0f} s left)" if number < total else ""),
            flush=True,
        )
    done, took = total - len(failed), time.monotonic() - start
    print(f"{done} converted into {visible(folder)}, {len(failed)} failed, {took:.0f} s")
    for error in failed:
        print(f"mixtransfer convert: error: {error}", file=sys.stderr)
    return 1 if failed else 0
