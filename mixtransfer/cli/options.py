"""Options that several commands share; wrong values are refused before anything is imported."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtransfer.engine.config import load_config
from mixtransfer.engine.launchers import LAUNCHERS
from mixtransfer.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

#: The forms of a checkpoint's name, said in the help of commands that take one; they are fetched into a cache.
NAMES = "https://…, hf://ORG/REPO[/FILE], timm://NAME, weights://NAME"
#: Said in the help of commands on a config.
CODE = "A config is a Python program and is run; nothing in a checkpoint is, unless with --trust (see SECURITY.md)."

__all__ = [
    "CODE",
    "NAMES",
    "add_arguments",
    "add_zero",
    "config_of",
    "count",
    "fraction",
    "part",
    "positive",
    "ratio",
    "require_writable",
    "seconds",
    "seed",
    "share",
    "write_json",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command on a config, the config first."""
    parser.epilog = CODE
    parser.add_argument("config", metavar="CONFIG", help="a config file, or a name that mixtransfer configs lists")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="dataset to use instead of the config's, in any layout of docs/data.md, or 'scenes'",
    )
    parser.add_argument(
        "--arch",
        metavar="NAME",
        help="another size of the recipe's backbone, e.g. swin_base, with the values published for it; what changes is"
        " said, and --cfg-options still wins",
    )
    add_zero(parser)
    parser.add_argument("--work-dir", metavar="DIR", help="where results go (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change entries of the config, e.g. train_dataloader.batch_size=4",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="how distributed processes were started")
    parser.add_argument("--trust", action="store_true", help="let checkpoints run code (only if you know their author)")


def add_zero(parser: argparse.ArgumentParser) -> None:
    """Add the option about label 0 of masks."""
    parser.add_argument(
        "--zero-is-class",
        action=argparse.BooleanOptionalAction,
        help="whether label 0 of masks is a class or void (default: what the masks say; void in ADE20K's layout)",
    )


def add_protocols(parser: argparse.ArgumentParser) -> None:
    """Add the options that let a network see an image in several ways."""
    parser.add_argument(
        "--tta",
        action="store_true",
        help="show a segmentor or detector each image at several sizes, mirrored and not, and merge the answers",
    )
    parser.add_argument(
        "--tta-scales",
        type=ratio,
        nargs="+",
        metavar="RATIO",
        help="sizes for --tta as multiples of the config's test scale (segmentors: 0.5 to 1.75 by 0.25; detectors:"
        " 0.5 1 1.5)",
    )
    parser.add_argument(
        "--slide",
        type=positive,
        nargs=2,
        metavar=("CROP", "STRIDE"),
        help="show a segmentor square windows of CROP pixels of the resized image, one every STRIDE pixels",
    )


def check_protocols(args: argparse.Namespace) -> None:
    """Make sure that options of :func:`add_protocols` go together.

    Raises:
        UserError: sizes of views without views.
    """
    if args.tta_scales and not args.tta:
        raise UserError("--tta-scales: gives the sizes of --tta; add --tta")


def use_protocols(args: argparse.Namespace, cfg: Config) -> None:
    """Apply options of :func:`add_protocols` to a config, in place.

    Raises:
        UserError: the model or its pipeline has no such views or windows.
    """
    from mixtransfer.evaluation.protocols import use_views, use_windows
    from mixtransfer.registry import import_quietly

    if args.slide:
        use_windows(cfg, *args.slide)
    if args.tta:
        import_quietly("mixtransfer.evaluation.augmented")
        use_views(cfg, args.tta_scales)


def config_of(args: argparse.Namespace, splits: Sequence[str]) -> Config:
    """Return the config that arguments of :func:`add_arguments` describe; ``splits`` are those that will be read."""
    return load_config(
        args.config,
        splits,
        arch=args.arch,
        options=args.cfg_options,
        data=args.data,
        work_dir=args.work_dir,
        launcher=args.launcher,
        zero_is_class=args.zero_is_class,
    )


def positive(text: str) -> int:
    """Read a number from 1."""
    return _number(text, 1, "from 1")


def count(text: str) -> int:
    """Read a number from 0."""
    return _number(text, 0, "from 0")


def seed(text: str) -> int:
    """Read a seed that Python, NumPy and torch all take."""
    return _number(text, 0, "from 0 to 4294967295", 2**32 - 1)


def share(text: str) -> float:
    """Read a share of a whole."""
    value = _real(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 to 1")
    return value


def part(text: str) -> float:
    """Read a share of a whole that leaves a rest."""
    value = _real(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0 and below 1")
    return value


def fraction(text: str) -> Fraction:
    """Read a part of a whole, which is something: ``1/8`` or ``0.125``."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share above 0 up to 1, as 1/8")
    return value


def ratio(text: str) -> float:
    """Read a multiple of a size."""
    value = _real(text)
    if not 0 < value <= 16:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0, up to 16")
    return value


def seconds(text: str) -> float:
    """Read a time."""
    value = _real(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of seconds above 0")
    return value


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1


def _number(text: str, least: int, form: str, most: float = float("inf")) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number {form}")
    return int(text)


def require_writable(path: Path | None) -> None:
    """Make sure that the file of ``--json`` can be written; a folder's permissions alone do not tell root."""
    if path is None:
        return
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            writable = not path.is_dir()
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"--json {path}: cannot be written; give a file in a folder that exists")


def write_json(path: Path | None, content: Any) -> None:
    """Write the file of ``--json``, if there is one, whole or not at all."""
    from mixtransfer.checkpoints.whole_files import replace_whole

    if path is not None:
        with replace_whole(path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
