"""``test``: measure a checkpoint on a dataset."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mixtransfer.cli.running import add_arguments, build_runner, load_config, make_folder, one_line_errors, plain
from mixtransfer.errors import UserError

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the options of ``test``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer test", description="Measure a checkpoint; print the metrics and save them as JSON."
    )
    add_arguments(options)
    options.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of the config's whole model")
    options.add_argument("--out", metavar="FILE", help="where the metrics go (WORK_DIR/metrics.json)")
    options.add_argument("--show-dir", metavar="DIR", help="folder for pictures of ground truth and prediction")
    return options


def run(args: argparse.Namespace) -> int:
    """Measure; return 0."""
    if not Path(args.checkpoint).is_file():
        raise UserError(f"{args.checkpoint}: no such checkpoint file")
    cfg = load_config(args, splits=("test",))
    out = Path(args.out or Path(cfg.work_dir) / "metrics.json")
    make_folder(out.parent, "--out, folder")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give a file")
    if args.show_dir:
        make_folder(args.show_dir, "--show-dir")

    from mixtransfer.registry import import_quietly

    import_quietly("mixtransfer.evaluation.metrics")

    from mixtransfer.checkpoints.write import replace_whole
    from mixtransfer.evaluation.metrics import measure_classes
    from mixtransfer.visualization.predictions import PredictionPictures

    measure_classes(cfg)
    # The weights are about to be replaced: what the backbone was trained from is of no interest.
    if "backbone" in cfg.model:
        cfg.model.backbone.init_cfg = None
    cfg.load_from, cfg.resume = args.checkpoint, False
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks", []) if not hook["type"].endswith("TokenMixHook")]
    with one_line_errors(args.config):
        runner = build_runner(cfg, args.trust)
        if args.show_dir:
            runner.register_hook(PredictionPictures(args.show_dir))
        metrics = plain(runner.test())
    classes = {}
    for metric in runner.test_evaluator.metrics:
        classes.update(plain(getattr(metric, "per_class", {})))
    result = {"checkpoint": args.checkpoint, "config": args.config, "metrics": metrics, "per_class": classes}
    with replace_whole(out) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, values in classes.items():
        print(f"{name:<24}", *(f"{key} {_number(value)}" for key, value in values.items()))
    for name, value in metrics.items():
        print(f"{name:<24} {_number(value)}")
    print(f"saved to {out}")
    return 0


def _number(value: float | None) -> str:
    return "       –" if value is None else f"{value:8.3f}"
