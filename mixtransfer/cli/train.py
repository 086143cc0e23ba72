"""``train``: a classifier, segmentor or detector from a config, on any dataset, resumable at any moment."""

from __future__ import annotations

import argparse

from mixtransfer.cli.options import add_arguments, config_of, seed
from mixtransfer.engine.build import build_runner, one_line_errors, prepare
from mixtransfer.errors import UserError, visible

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
    cfg = config_of(args, splits=("train", "val"))

    import torch

    from mixtransfer.engine.hooks import Interrupted, InterruptHook, latest_checkpoint
    from mixtransfer.engine.resume import Place

    cfg.randomness = dict(seed=args.seed, deterministic=args.deterministic)
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError("--amp needs a GPU, and torch finds none; leave it out")
        cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
    if args.compile:
        cfg.compile = True
    if args.resume:
        path = latest_checkpoint(cfg.work_dir) if args.resume == "auto" else args.resume
        if path is None:
            raise UserError(f"--resume: no checkpoint in {cfg.work_dir}; give its file, or leave --resume out to start")
        place = Place.of(path, args.trust)
        if place.seed != args.seed:
            raise UserError(f"{path} was trained with --seed {place.seed}; resume it with the same")
        cfg.load_from, cfg.resume = str(path), True
    with one_line_errors(args.config):
        changes = prepare(cfg, "resume" if args.resume else "train")
        runner = build_runner(cfg, args.trust)
    for change in changes:
        runner.logger.debug(f"config: {change}")
    interrupt = InterruptHook()
    runner.register_hook(interrupt)
    try:
        with interrupt.signals(), one_line_errors(args.config):
            runner.train()
    except Interrupted as stop:
        print(f"stopped after iteration {stop.iteration}, saved {visible(stop.checkpoint)}; go on with --resume")
        return 130
    return 0
