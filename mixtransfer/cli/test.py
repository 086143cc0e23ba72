"""``test``: measure a checkpoint on a dataset."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtransfer.cli.options import add_arguments, config_of
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
    options.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of the config's whole model")
    options.add_argument("--out", metavar="FILE", help="where the metrics go (WORK_DIR/metrics.json)")
    options.add_argument("--show-dir", metavar="DIR", help="folder for pictures of ground truth and prediction")
    return options


def run(args: argparse.Namespace) -> int:
    """Run ``test``."""
    from mixtransfer.checkpoints.headers import require_file

    require_file(args.checkpoint)
    cfg = config_of(args, splits=("test",))
    out = Path(args.out or Path(cfg.work_dir) / "metrics.json")
    make_folder(out.parent, "--out, folder")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give a file")
    if args.show_dir:
        make_folder(args.show_dir, "--show-dir")

    from mixtransfer.registry import import_quietly

    import_quietly("mixtransfer.evaluation.metrics")

    from mixtransfer.checkpoints.read import read_checkpoint
    from mixtransfer.checkpoints.write import replace_whole
    from mixtransfer.datasets.classes import match_classes, trained_classes
    from mixtransfer.visualization.prediction_hook import PredictionPictures

    cfg.load_from, cfg.resume = args.checkpoint, False
    match_classes(cfg, trained_classes(read_checkpoint(args.checkpoint, args.trust)), args.checkpoint)
    with one_line_errors(args.config):
        prepare(cfg, "test")
        runner = build_runner(cfg, args.trust)
        if args.show_dir:
            runner.register_hook(PredictionPictures(args.show_dir))
        metrics = _plain(runner.test())
    classes = {}
    for metric in runner.test_evaluator.metrics:
        classes.update(_plain(getattr(metric, "per_class", {})))
    result = {"checkpoint": args.checkpoint, "config": args.config, "metrics": metrics, "per_class": classes}
    with replace_whole(out) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, values in classes.items():
        print(f"{visible(name):<24}", *(f"{key} {_number(value)}" for key, value in values.items()))
    for name, value in metrics.items():
        print(f"{visible(name):<24} {_number(value)}")
    print(f"saved to {visible(out)}")
    return 0


def _number(value: float | None) -> str:
    return "       –" if value is None else f"{value:8.3f}"


def _plain(value: Any) -> Any:
    """Return ``value`` in types that JSON holds: numpy's numbers as Python's, not-a-number as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value != value else value
