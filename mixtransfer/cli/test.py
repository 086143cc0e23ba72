"""``test``: measure a checkpoint on a dataset."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from mixtransfer.cli.options import NAMES, add_arguments, add_protocols, check_protocols, config_of, use_protocols
from mixtransfer.engine.build import build_runner, one_line_errors, prepare
from mixtransfer.engine.config import make_folder
from mixtransfer.errors import UserError, visible

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``test``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer test", description="Measure a checkpoint; print the metrics and save them as JSON."
    )
    add_arguments(options)
    options.add_argument(
        "checkpoint", metavar="CHECKPOINT", help=f"a checkpoint of the config's whole model, or its name ({NAMES})"
    )
    options.add_argument("--out", metavar="FILE", help="where the metrics go (WORK_DIR/metrics.json)")
    options.add_argument(
        "--per-image",
        action="store_true",
        help="write what was found in each image beside the metrics, FILE.images.json: counts of pixels, detections",
    )
    options.add_argument("--show-dir", metavar="DIR", help="folder for pictures of ground truth and prediction")
    add_protocols(options)
    options.add_argument(
        "--format-only",
        metavar="DIR",
        help="write a detector's answers into DIR as COCO's server takes them, and measure nothing",
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Run ``test``."""
    from mixtransfer.checkpoints.fetch import located

    args.checkpoint = str(located(args.checkpoint))
    check_protocols(args)
    cfg = config_of(args, splits=("test",))
    out = Path(args.out or Path(cfg.work_dir) / "metrics.json")
    make_folder(out.parent, "--out, folder")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give a file")
    for option in ("--show-dir", "--format-only"):
        if folder := getattr(args, option[2:].replace("-", "_")):
            make_folder(folder, option)
    from mixtransfer.registry import import_quietly

    import_quietly("mixtransfer.evaluation.metrics")

    from mixtransfer.checkpoints.read import read_checkpoint
    from mixtransfer.datasets.classes import match_classes, trained_classes
    from mixtransfer.evaluation.meter import Meter, measured, origin_of
    from mixtransfer.evaluation.protocols import write_for_server
    from mixtransfer.evaluation.records import beside, write_record
    from mixtransfer.visualization.prediction_hook import PredictionPictures

    content = read_checkpoint(args.checkpoint, args.trust)
    origin = origin_of(content, args.checkpoint)
    match_classes(cfg, trained_classes(content), args.checkpoint)
    if args.format_only:
        write_for_server(cfg, Path(args.format_only))
    use_protocols(args, cfg)
    given, meter = copy.deepcopy(cfg), Meter(args.per_image)
    cfg.load_from, cfg.resume = args.checkpoint, False
    del content
    with one_line_errors(args.config):
        prepare(cfg, "format" if args.format_only else "test")
        runner = build_runner(cfg, args.trust)
        if args.show_dir:
            runner.register_hook(PredictionPictures(args.show_dir))
        runner.register_hook(meter)
        metrics = runner.test()
    if runner.rank:
        return 0
    if args.format_only:
        for path in sorted(Path(args.format_only).glob("results.*.json")):
            print(f"saved to {visible(path)}")
        return 0
    record = {
        "checkpoint": args.checkpoint,
        "config": args.config,
        **measured(runner, meter, given, origin, metrics),
    }
    if args.tta or args.slide:
        record["protocol"] = {"tta": args.tta, "tta_scales": args.tta_scales, "slide": args.slide}
    write_record(out, record)
    write_record(beside(out, "cost"), meter.cost())
    if args.per_image:
        write_record(beside(out, "images"), meter.images, compact=True)
    for name, values in record["per_class"].items():
        print(f"{visible(name):<24}", *(f"{key} {_number(value)}" for key, value in values.items()))
    for name, value in record["metrics"].items():
        print(f"{visible(name):<24} {_number(value)}")
    print(f"saved to {visible(out)}")
    return 0


def _number(value: float | None) -> str:
    return "       –" if value is None else f"{value:8.3f}"
