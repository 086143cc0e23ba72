"""``export``: a trained network as a file for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path

from mixtransfer.cli.options import NAMES, positive
from mixtransfer.engine.build import one_line_errors
from mixtransfer.engine.config import make_folder
from mixtransfer.errors import UserError, visible

__all__ = ["parser", "run"]

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "exported": ".pt2"}


def parser() -> argparse.ArgumentParser:
    """Return the options of ``export``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer export",
        description="Write a trained classifier or segmentor, or the backbone of any model, as a file for other"
        " runtimes, and compare its answers with the model's on two inputs before it is kept. It takes RGB pixels from"
        " 0 to 255, (images, 3, height, width) float32; normalization is inside. See docs/predict.md.",
        epilog="Nothing in the checkpoint is run, the config inside it neither, unless with --trust (see SECURITY.md).",
    )
    options.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help=f"a checkpoint of training, or its name ({NAMES}); its config is inside",
    )
    options.add_argument("--to", choices=SUFFIXES, required=True, help="ONNX, TorchScript, or torch.export's program")
    options.add_argument("--out", type=Path, metavar="FILE", help="the file (default: beside the checkpoint)")
    options.add_argument(
        "--part", choices=("model", "backbone"), default="model", help="what to export (default: model)"
    )
    options.add_argument(
        "--size", type=positive, nargs=2, default=(512, 512), metavar=("H", "W"), help="pixels (default 512 512)"
    )
    options.add_argument(
        "--trust", action="store_true", help="let the checkpoint run code (only if you know its author)"
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Export, and print what was proven."""
    from mixtransfer.checkpoints.fetch import located

    args.checkpoint = str(located(args.checkpoint))
    out = args.out or Path(args.checkpoint).with_suffix(SUFFIXES[args.to])
    make_folder(out.parent, "--out, folder")
    if out.exists() and out.samefile(args.checkpoint):
        raise UserError(f"{out}: is the checkpoint; give another --out")

    from mixtransfer.inference.export import export
    from mixtransfer.inference.model import load_model

    with one_line_errors(args.checkpoint):
        model = load_model(args.checkpoint, "cpu", trust=args.trust)
    for line in export(model, out, args.to, args.size, args.part):
        print(visible(line))
    print(f"saved to {visible(out)}")
    return 0
