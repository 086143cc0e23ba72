"""``visualize``: mixed batches, the labels of their tokens, their fluctuation, and predictions, as pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mixtransfer.cli.options import add_arguments, config_of, positive, seed
from mixtransfer.engine.build import build_runner, one_line_errors, prepare
from mixtransfer.engine.config import task_of
from mixtransfer.engine.mixing_options import use_mixing
from mixtransfer.errors import UserError, visible

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``visualize mix``, ``align``, ``fluctuation`` and ``predict``."""
    main = argparse.ArgumentParser(prog="mixtransfer visualize", description="Draw what a config does to images.")
    actions = main.add_subparsers(dest="action", required=True, metavar="{mix,align,fluctuation,predict}")
    for name, help_text, description in (
        (
            "mix",
            "a mixed batch with its ground truth",
            "Draw training images, their partners, and the mix of both. Of a classifier, area and label are given as "
            "the partner's share; where a method lets the network decide, give it a --checkpoint.",
        ),
        (
            "align",
            "a mixed batch with the labels of its tokens",
            "Draw mixed images and the labels of their tokens after each stage: the classes, and below them the share "
            "that came from the partner (blue: the image's own, orange: the partner's); of a classifier the share.",
        ),
        (
            "fluctuation",
            "how far tokens move from their place, block by block",
            "Put a box of one training image into another, and draw each token's share of the two images after every "
            "block, as TL-Align's labels have it: maps, a curve of the drift from the input's share, and the numbers "
            "as JSON. Any network with attention.",
        ),
        ("predict", "a model's predictions", "Draw what a trained model sees in images."),
    ):
        action = actions.add_parser(name, help=help_text, description=description)
        add_arguments(action)
        if name == "predict":
            action.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of the config's whole model")
            action.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or one folder of them")
            continue
        if name == "fluctuation":
            action.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="weights of the whole model")
        else:
            action.add_argument("--checkpoint", metavar="FILE", help="weights of the whole model")
        action.add_argument("--count", type=positive, default=3, metavar="N", help="images to draw (default 3)")
        action.add_argument("--seed", type=seed, default=0, metavar="S", help="another seed draws another batch")
        if name == "mix":
            action.add_argument(
                "--mixing",
                metavar="NAME",
                help="a classifier's mixing method in place of the config's; 'all': one sheet of all of them",
            )
    return main


def run(args: argparse.Namespace) -> int:
    """Draw into the work directory; return 0, or 1 if some of the images could not be drawn."""
    with one_line_errors(args.config):
        return _predict(args) if args.action == "predict" else _draw_batch(args)


def _draw_batch(args: argparse.Namespace) -> int:
    from mixtransfer.visualization import batches
    from mixtransfer.visualization.mixes import save_every_method, save_fluctuation

    cfg = config_of(args, splits=("train",))
    dense = task_of(cfg) != "cls"
    mixing = getattr(args, "mixing", None)
    if mixing:
        use_mixing(cfg, "none" if mixing == "all" else mixing, args.config)
    # What a segmentor's or detector's hook mixes depends on no weights.
    weightless = dense and (args.checkpoint or args.action == "mix")
    prepare(cfg, "draw mix" if weightless else "draw")
    runner = build_runner(cfg, args.trust)
    if args.checkpoint:
        runner.load_checkpoint(args.checkpoint)
    else:
        runner.initialize()
    names, palette = batches.class_colors(cfg)
    folder = Path(cfg.work_dir)
    path = folder / f"{args.action}.png"
    weights = Path(args.checkpoint).name if args.checkpoint else "its first weights"
    title = f"{args.action}: {Path(args.config).stem}, {weights}, seed {args.seed}"
    if args.action == "fluctuation":
        for written in save_fluctuation(runner, path, args.count, args.seed, title):
            print(visible(written))
    elif mixing == "all":
        print(visible(save_every_method(runner, names, path, args.seed, title)))
    elif not dense:
        batch = batches.mixed_classes(runner, args.seed)
        if args.action == "mix":
            print(visible(batches.save_mixed_classes(batch, names, path, args.count, title)))
        else:
            backbone = runner.model.backbone
            print(visible(batches.save_aligned_classes(batch, backbone, names, path, args.count, title)))
    else:
        draw = batches.save_mixed if args.action == "mix" else batches.save_aligned
        batch = batches.mixed_batch(runner, args.seed)
        print(visible(draw(batch, palette, names, path, args.count, title)))
    return 0


def _predict(args: argparse.Namespace) -> int:
    from mixtransfer.datasets.sources import image_files
    from mixtransfer.visualization.inference import save_predictions

    files = [Path(name) for name in args.images]
    if len(files) == 1 and files[0].is_dir():
        files = image_files(files[0])
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        raise UserError(f"{missing[0] if missing else args.images[0]}: no such image")
    cfg = config_of(args, splits=("test",))
    prepare(cfg, "predict")
    status = 0
    for answer in save_predictions(cfg, args.checkpoint, files, Path(cfg.work_dir), args.trust):
        if isinstance(answer, UserError):
            # The other pictures are drawn all the same.
            status = 1
            print(f"mixtransfer visualize: error: {answer}", file=sys.stderr)
        else:
            print(visible(answer))
    return status
