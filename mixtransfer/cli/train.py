"""``train``: a classifier, segmentor or detector from a config, on any dataset, resumable at any moment."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING

from mixtransfer.cli.options import add_arguments, config_of, count, fraction, positive, seed, share
from mixtransfer.engine import schedule
from mixtransfer.engine.build import build_runner, one_line_errors, prepare
from mixtransfer.engine.config import read_config
from mixtransfer.engine.mixing_options import use_mixing, use_token_mix
from mixtransfer.engine.schedule import TRACKERS
from mixtransfer.errors import UserError, visible
from mixtransfer.progress import notice

if TYPE_CHECKING:
    from mmengine.config import Config

    from mixtransfer.engine.interrupt import InterruptHook
    from mixtransfer.engine.resume import Place

__all__ = ["parser", "run"]


#: What ``--resume`` may say instead of a file: the newest checkpoint if there is one, or else an error.
AUTO, MUST = "auto", "must"
#: Types of mixed precision; ``AUTO`` is what the GPU has.
AMP = (AUTO, "bfloat16", "float16")
END = """\
exit status: 0 done; 2 something given is wrong, in one line; 130 stopped by Ctrl-C or SIGTERM; 85 stopped by SIGHUP,
SIGUSR1 or SIGUSR2, by which schedulers take a machine back: start the same command again. After 130 and 85 the work
directory holds the exact state, if training had begun. See docs/distributed.md."""


def parser() -> argparse.ArgumentParser:
    """Return the options of ``train``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer train",
        description="Train the model of a config. Logs, checkpoints and the final config go to the work directory."
        " Ctrl-C saves and stops; --resume goes on as if nothing had happened.",
        epilog=END,
    )
    add_arguments(options)
    options.add_argument(
        "--resume",
        nargs="?",
        const=AUTO,
        metavar="FILE",
        help="go on from the newest sound checkpoint in the work directory, start if there is none; 'must': there has"
        " to be one; FILE: from this checkpoint of training",
    )
    options.add_argument(
        "--overwrite", action="store_true", help="delete the checkpoints of another training in the work directory"
    )
    options.add_argument(
        "--bad-images",
        type=share,
        default=0.001,
        metavar="SHARE",
        help="replace images that cannot be read by others, and stop when they are more than this share of the"
        " dataset; 0 stops at the first (default: %(default)s)",
    )
    length = options.add_mutually_exclusive_group()
    length.add_argument("--iters", type=positive, metavar="N", help="train so many iterations; the schedule is scaled")
    length.add_argument(
        "--epochs", type=positive, metavar="N", help="the same in epochs, where the config counts these"
    )
    options.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the images a step of all processes"
    )
    options.add_argument("--freeze", type=count, metavar="N", help="freeze patch embedding and the first N stages")
    options.add_argument(
        "--ema",
        type=share,
        nargs="?",
        const=0.9998,
        metavar="DECAY",
        help="validate and save averaged weights (0.9998)",
    )
    options.add_argument(
        "--early-stop", type=positive, metavar="N", help="stop after N validations without a better one"
    )
    options.add_argument(
        "--log", metavar="NAMES", help=f"also log to {', '.join(TRACKERS)} (several: joined by commas)"
    )
    options.add_argument(
        "--fraction",
        type=fraction,
        metavar="PART",
        help="train on this part of the labeled images, e.g. 1/8, chosen so that each class has its share",
    )
    options.add_argument(
        "--fraction-seed", type=seed, default=0, metavar="SEED", help="seed of that choice (default: %(default)s)"
    )
    options.add_argument(
        "--amp",
        nargs="?",
        const=AUTO,
        choices=AMP,
        metavar="TYPE",
        help="mixed precision on a GPU, bfloat16 or float16 (default: bfloat16 where the GPU has it)",
    )
    options.add_argument(
        "--mixing",
        metavar="NAME",
        help="mixing method of a classifier in place of the config's, e.g. TransMix, with its published settings;"
        " 'none' mixes nothing",
    )
    options.add_argument(
        "--token-mix",
        nargs="?",
        const="TokenBox",
        metavar="REGION",
        help="token-level mixing in a segmentor or detector, e.g. ClassRegion (default: %(const)s); see"
        " docs/token_mix_hook.md",
    )
    options.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    options.add_argument("--seed", type=seed, help="seed of everything random (default: the config's, or 0)")
    options.add_argument(
        "--deterministic", action="store_true", help="use deterministic operations only, where there are"
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Train; return 0, or the status of :class:`~mixtransfer.engine.interrupt.Interrupted`."""
    cfg = config_of(args, splits=("train", "val"))
    if args.mixing:
        use_mixing(cfg, args.mixing, args.config)
    if args.token_mix:
        use_token_mix(cfg, args.token_mix, args.config)

    from mixtransfer.engine.interrupt import Interrupted, InterruptHook, say
    from mixtransfer.engine.work_dir import locked

    interrupt = InterruptHook()
    try:
        with interrupt.signals(), locked(cfg.work_dir):
            _train(args, cfg, interrupt)
    except Interrupted as stop:
        if stop.checkpoint is None:
            say("stopped before training began")
        else:
            say(f"stopped after iteration {stop.iteration}, saved {visible(stop.checkpoint)}; go on with --resume")
        return stop.status
    return 0


def amp_settings(kind: str) -> dict:
    """Return the settings of mmengine's AmpOptimWrapper for a type of ``AMP``.

    Gradients in float16 are scaled up, so that none is lost; bfloat16 has float32's range and needs no scale.

    Raises:
        UserError: there is no GPU, or it has no bfloat16.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError("--amp needs a GPU, and torch finds none; leave it out")
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "bfloat16" and not bfloat16:
        raise UserError(f"--amp bfloat16: {torch.cuda.get_device_name()} has none; give float16")
    if kind == "float16" or not bfloat16:
        return {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"}
    return {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": {"enabled": False}}


def _train(args: argparse.Namespace, cfg: Config, interrupt: InterruptHook) -> None:
    from mmengine.dist import get_world_size, is_main_process

    from mixtransfer.datasets.subset import take_fraction
    from mixtransfer.engine.settings import changed_settings, describe
    from mixtransfer.engine.work_dir import remove_training, require_unused

    randomness = cfg.get("randomness") or {}
    chosen = randomness.get("seed") or 0 if args.seed is None else args.seed
    cfg.randomness = {**randomness, "seed": chosen}
    if args.deterministic:
        cfg.randomness.deterministic = True
    cfg.bad_images = args.bad_images
    if args.amp:
        cfg.optim_wrapper.update(amp_settings(args.amp))
    if args.compile:
        cfg.compile = True
    _adapt(args, cfg)
    path, place = _resumed(args, cfg)
    if not args.overwrite:
        require_unused(cfg.work_dir, path)
    if path is not None:
        cfg.load_from, cfg.resume = str(path), True
    plain = copy.deepcopy(cfg)
    with one_line_errors(args.config):
        changes = prepare(cfg, "train" if path is None else "resume")
        if args.fraction is not None:
            take_fraction(cfg, plain, fraction=args.fraction, seed=args.fraction_seed)
        runner = build_runner(cfg, args.trust)
    runner.settings = describe(plain, get_world_size())
    if path is not None:
        for line in changed_settings(place.settings, runner.settings, str(path)):
            notice(f"--resume: {line}")
    for change in changes:
        runner.logger.debug(f"config: {change}")
    runner.register_hook(interrupt)
    if args.overwrite and is_main_process():
        remove_training(cfg.work_dir)
    with one_line_errors(args.config), interrupt.saving(runner):
        runner.train()


def _adapt(args: argparse.Namespace, cfg: Config) -> None:
    """Apply the options that stand for several entries of the config."""
    for unit in ("iters", "epochs"):
        if getattr(args, unit) is not None:
            schedule.set_length(cfg, getattr(args, unit), unit)
    if args.auto_scale_lr:
        schedule.follow_batch(cfg)
    if args.freeze is not None:
        schedule.freeze(cfg, args.freeze)
    if args.ema is not None:
        schedule.add_average(cfg, args.ema)
    if args.early_stop is not None:
        schedule.add_early_stop(cfg, args.early_stop)
    if args.log is not None:
        schedule.add_trackers(cfg, args.log)
    if note := schedule.check_warm_up(cfg, lambda: schedule.length_of(read_config(args.config))):
        notice(note)


def _resumed(args: argparse.Namespace, cfg: Config) -> tuple[Path | None, Place | None]:
    """Return the checkpoint that ``--resume`` goes on from, and where it stands; None and None for a fresh training."""
    from mixtransfer.datasets.classes import match_classes
    from mixtransfer.engine.resume import Place
    from mixtransfer.engine.work_dir import newest_sound

    if not args.resume:
        return None, None
    if args.resume in (AUTO, MUST):
        found = newest_sound(cfg.work_dir, lambda path: Place.of(path, args.trust))
        if found is None:
            if args.resume == MUST:
                raise UserError(f"--resume must: no checkpoint in {cfg.work_dir}; give its file, or leave --resume out")
            notice(f"--resume: no checkpoint in {cfg.work_dir}; training starts")
            return None, None
        path, place = found
    else:
        path, place = Path(args.resume), Place.of(args.resume, args.trust)
    if place.seed != cfg.randomness.seed:
        raise UserError(f"{path} was trained with --seed {place.seed}; resume it with the same")
    match_classes(cfg, place.classes, str(path))
    return path, place
