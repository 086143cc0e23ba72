"""``train``: a classifier, segmentor or detector from a config, on any dataset, resumable at any moment."""

from __future__ import annotations

import argparse

from mixtransfer.cli.options import seed
from mixtransfer.cli.running import add_arguments, build_runner, load_config, one_line_errors, require_pretrained
from mixtransfer.errors import UserError

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the options of ``train``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer train",
        description="Train the model of a config. Logs, checkpoints and the final config go to the work directory."
        " Ctrl-C saves and stops; --resume goes on as if nothing had happened.",
    )
    add_arguments(options)
    options.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="go on from a checkpoint of training, by default the newest in the work directory",
    )
    options.add_argument("--amp", action="store_true", help="mixed precision (float16), on a GPU")
    options.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    options.add_argument("--seed", type=seed, default=0, help="seed of everything random (default: %(default)s)")
    options.add_argument(
        "--deterministic", action="store_true", help="use deterministic operations only, where there are"
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Train; return 0, or 130 after an interruption that was saved."""
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give 0 or more")
    cfg = load_config(args, splits=("train", "val"))

    import torch

    from mixtransfer.checkpoints import read_checkpoint
    from mixtransfer.transfer.guards import Interrupted, InterruptHook, latest_checkpoint
    from mixtransfer.transfer.runner import is_resumable

    cfg.randomness = dict(seed=args.seed, deterministic=args.deterministic)
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError("--amp needs a GPU, and torch finds none; leave it out")
        cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
    if args.compile:
        cfg.compile = True
    cfg.default_hooks.checkpoint = {
        "max_keep_ckpts": 3,
        **cfg.default_hooks.get("checkpoint", {}),
        "type": "mixtransfer.CheckpointHook",
    }
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), dict(type="mixtransfer.LossGuardHook")]
    if args.resume:
        path = latest_checkpoint(cfg.work_dir) if args.resume == "auto" else args.resume
        if path is None:
            raise UserError(f"--resume: no checkpoint in {cfg.work_dir}; give its file, or leave --resume out to start")
        content = read_checkpoint(path, args.trust)
        if not is_resumable(content):
            raise UserError(f"{path}: holds weights but no state of training; it cannot be resumed")
        if content["meta"]["seed"] != args.seed:
            raise UserError(f"{path} was trained with --seed {content['meta']['seed']}; resume it with the same")
        cfg.load_from, cfg.resume = str(path), True
        if "backbone" in cfg.model:
            # The checkpoint brings all weights; those that training started from may be gone.
            cfg.model.backbone.init_cfg = None
    else:
        require_pretrained(cfg.model)

    with one_line_errors(args.config):
        runner = build_runner(cfg, args.trust)
    interrupt = InterruptHook()
    runner.register_hook(interrupt)
    try:
        with interrupt.signals(), one_line_errors(args.config):
            runner.train()
    except Interrupted as stop:
        print(f"stopped after iteration {stop.iteration}, saved {stop.checkpoint}; go on with --resume")
        return 130
    return 0
