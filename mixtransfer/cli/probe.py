"""``probe``: linear heads on frozen maps, for many learning rates and seeds at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtransfer.cli.options import add_arguments, config_of, positive, seed
from mixtransfer.engine.build import one_line_errors, prepare
from mixtransfer.engine.config import make_folder
from mixtransfer.errors import UserError, visible

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the options of ``probe``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer probe",
        description="Measure frozen backbones: BatchNorm and a linear layer on each of their maps and on all of them."
        " The backbone runs once over the data; its maps are kept.",
    )
    add_arguments(options)
    options.add_argument(
        "checkpoint", nargs="+", metavar="CHECKPOINT", help="weights of the config's backbone; 'random' for none"
    )
    options.add_argument(
        "--seeds",
        nargs="+",
        type=seed,
        default=[0],
        help="seeds of the heads; the first one is that of random weights, too (default: 0)",
    )
    options.add_argument("--iterations", type=positive, default=150, help="steps of the heads (default: %(default)s)")
    options.add_argument("--batch", type=positive, default=8, help="images of a step (default: %(default)s)")
    options.add_argument("--cache", metavar="DIR", help="where maps are kept (default: WORK_DIR/maps)")
    options.add_argument("--out", metavar="FILE", help="where the record goes (default: WORK_DIR/CHECKPOINT.json)")
    return options


def run(args: argparse.Namespace) -> int:
    """Probe each checkpoint; return 0."""
    from mixtransfer.checkpoints.fetch import is_name, located
    from mixtransfer.evaluation.maps import RANDOM

    for number, name in enumerate(args.checkpoint):
        if name != RANDOM and not is_name(name) and not Path(name).is_file():
            raise UserError(f"{name}: no such checkpoint file; 'random' stands for random weights")
        if is_name(name):
            args.checkpoint[number] = str(located(name))
    stems = [Path(name).stem for name in args.checkpoint]
    if args.out and len(stems) > 1:
        raise UserError("--out: names one file, and there are several checkpoints; leave it out")
    if len(set(stems)) < len(stems):
        raise UserError(f"{', '.join(args.checkpoint)}: two have the same name; probe them one by one with --out")
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: one stands twice")
    cfg = config_of(args, splits=("train", "test"))
    if "decode_head" not in cfg.model:
        raise UserError(f"{args.config}: no config of a segmentor; give one, its backbone is probed on its data")
    for name, stem in zip(args.checkpoint, stems, strict=True):
        _probe(args, cfg, name, Path(args.out or Path(cfg.work_dir) / f"{stem}.json"))
    return 0


def _probe(args: argparse.Namespace, cfg: Config, checkpoint: str, out: Path) -> None:
    import copy
    import time

    import torch

    from mixtransfer.evaluation.maps import frozen_backbone, kept_maps
    from mixtransfer.evaluation.probe import Heads, Recipe, chosen_rates, count, train_heads
    from mixtransfer.evaluation.probe_record import record_of
    from mixtransfer.evaluation.records import beside, write_record
    from mixtransfer.registry import import_quietly

    import_quietly("mixtransfer.evaluation.metrics")
    make_folder(out.parent, "--out, folder")
    begun = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prepared = copy.deepcopy(cfg)
    with one_line_errors(args.config):
        prepare(prepared, "test")
        backbone = frozen_backbone(prepared, checkpoint, args.trust, args.seeds[0])
        cache = Path(args.cache or Path(cfg.work_dir) / "maps")
        train, test = (kept_maps(prepared, backbone, split, cache, device) for split in ("train", "test"))
    kept = time.monotonic()
    recipe = Recipe(seeds=tuple(args.seeds), iterations=args.iterations, batch=args.batch)
    classes = prepared.model.decode_head
    number = (classes[-1] if isinstance(classes, list) else classes).num_classes
    held_out = list(range(recipe.holdout - 1, len(train), recipe.holdout))
    if not held_out:
        raise UserError(f"{len(train)} training images are too few for a probe; give at least {recipe.holdout}")
    trained_on = [place for place in range(len(train)) if place not in set(held_out)]
    heads = Heads(train.channels, number, recipe).to(device)
    losses = train_heads(heads, train, trained_on, device)
    chosen = chosen_rates(count(heads, train, held_out, device))
    counts = count(heads, test, range(len(test)), device, int(chosen[-1, 0]))
    record: dict[str, Any] = record_of(cfg, backbone, heads, counts, chosen, losses, test)
    write_record(out, {"checkpoint": checkpoint, "config": args.config, **record})
    if len(recipe.seeds) == 1:
        pixels = [{str(k): row.tolist() for k, row in enumerate(rows) if row.any()} for rows in counts.images]
        entries = [{"image": name, "pixels": found} for name, found in zip(test.names, pixels, strict=True)]
        write_record(beside(out, "images"), entries, compact=True)
    write_record(beside(out, "cost"), {"maps_seconds": kept - begun, "heads_seconds": time.monotonic() - kept})
    print(visible(checkpoint))
    for row in record["heads"]:
        if row["chosen"]:
            print(f"  {row['maps']:<12} seed {row['seed']}, rate {row['rate']:g}: mIoU {row['mIoU']:.2f}")
    print(f"saved to {visible(out)}")
