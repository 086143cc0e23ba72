"""``test``: measure a checkpoint on a dataset."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mixtransfer.cli.running import add_common_options, prepare, read_config
from mixtransfer.errors import UserError

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the options of ``test``."""
    options = argparse.ArgumentParser(
        prog="test", description="Measure a checkpoint; print the metrics and save them as JSON."
    )
    add_common_options(options)
    options.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of the config's whole model")
    options.add_argument("--out", metavar="FILE", help="where the metrics go (WORK_DIR/metrics.json)")
    options.add_argument("--show-dir", metavar="DIR", help="folder for pictures of ground truth and prediction")
    return options


def run(args: argparse.Namespace) -> int:
    """Measure; return 0."""
    if not Path(args.checkpoint).is_file():
        raise UserError(f"{args.checkpoint}: no such checkpoint file")
    cfg = read_config(args.config, args.cfg_options)
    prepare(cfg, args, splits=("test",))

    from mixtransfer.transfer.runner import TransferRunner

    # The weights are about to be replaced: what the backbone was trained from is of no interest.
    if "backbone" in cfg.model:
        cfg.model.backbone.init_cfg = None
    cfg.load_from, cfg.resume = args.checkpoint, False
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks", []) if not hook["type"].endswith("TokenMixHook")]
    if args.show_dir:
        Path(args.show_dir).mkdir(parents=True, exist_ok=True)
        hook = cfg.default_hooks.setdefault("visualization", dict(type="VisualizationHook"))
        # mmengine puts a relative folder below the log folder.
        folder = str(Path(args.show_dir).resolve())
        hook.update(draw=True, interval=1, test_out_dir=folder)
        cfg.visualizer.update(save_dir=folder)
    TransferRunner.trust = args.trust
    runner = TransferRunner.from_cfg(cfg)
    metrics = {name: float(value) for name, value in runner.test().items()}
    out = Path(args.out or Path(cfg.work_dir) / "metrics.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    for name, value in metrics.items():
        print(f"{name:<24} {value:8.3f}")
    print(f"saved to {out}")
    return 0
