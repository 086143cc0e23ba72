"""``benchmark``: count cost, measure throughput; ``speed`` is a command of a checkout (benchmarks/command.py).

``robustness`` is in ``mixtransfer.cli.robustness``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mixtransfer.cli import robustness
from mixtransfer.cli.options import positive, require_writable, seconds, write_json
from mixtransfer.engine.recipes import describe, find_config, recipe_files
from mixtransfer.errors import UserError
from mixtransfer.progress import progress_line

if TYPE_CHECKING:
    from mmengine.config import Config

#: What ``throughput`` times, and in which types.
MODES = ("evaluation", "training")
DTYPES = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``benchmark`` with its actions."""
    main = argparse.ArgumentParser(
        prog="mixtransfer benchmark", description="Measure speed, complexity, throughput and robustness."
    )
    commands = main.add_subparsers(dest="action", required=True, metavar="{speed,complexity,throughput,robustness}")
    # Whatever follows the word is taken, options too.
    speed = commands.add_parser(
        "speed", add_help=False, prefix_chars="\0", help="compare speed with other implementations, in a checkout"
    )
    speed.add_argument("options", nargs="*")
    count = commands.add_parser(
        "complexity",
        help="count parameters and multiply-accumulates",
        description="Print the parameters and multiply-accumulates (papers: FLOPs) of classifiers, or of the whole"
        " models of configs, part by part, at 512 × 2048 (segmentors) and 800 × 1280 pixels (detectors), beside what"
        " the recipe's authors print.",
    )
    count.add_argument(
        "names",
        nargs="*",
        metavar="ARCH|CONFIG",
        help="architectures, or configs such as configs/det/mask_rcnn_swin.py (default: all architectures)",
    )
    count.add_argument(
        "--size", type=positive, nargs=2, metavar=("H", "W"), help="pixels (default: the published size of each)"
    )
    throughput = commands.add_parser(
        "throughput",
        help="measure images per second, latency and memory of models",
        description="Time tests and training steps of the models of configs on random images in memory, batch by"
        " batch, and print a table; the file of --json is written row by row.",
    )
    throughput.add_argument("names", nargs="+", metavar="CONFIG", help="configs, e.g. configs/det/mask_rcnn_swin.py")
    throughput.add_argument(
        "--mode", nargs="+", choices=MODES, default=list(MODES), help="what to time (default: both)"
    )
    throughput.add_argument(
        "--batch", type=positive, nargs="+", default=[1], metavar="N", help="images in a step (default 1)"
    )
    throughput.add_argument(
        "--size", type=positive, nargs=2, metavar=("H", "W"), help="pixels (default: the published size of each)"
    )
    throughput.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    throughput.add_argument("--threads", type=positive, metavar="N", help="threads on CPU (default: torch's choice)")
    throughput.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="other than float32: autocast (default float32)"
    )
    throughput.add_argument(
        "--seconds", type=seconds, default=5.0, metavar="S", help="least time of a row's steps (default 5)"
    )
    throughput.add_argument(
        "--checkpoint", metavar="FILE", help="weights of the one config's model; an untrained detector finds nothing"
    )
    throughput.add_argument(
        "--trust", action="store_true", help="let the checkpoint run code (only if you know its author)"
    )
    for command in (count, throughput):
        command.add_argument("--arch", metavar="NAME", help="another size of the configs' backbone, e.g. swin_base")
        command.add_argument(
            "--cfg-options",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="change entries of the configs, e.g. model.roi_head.bbox_head.num_classes=20",
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    robustness.add_parser(commands)
    return main


def run(args: argparse.Namespace) -> int:
    """Run one of the actions."""
    if args.action == "speed":
        raise UserError("speed: others' ways of computing are in a checkout only; run tools/benchmark.py speed in one")
    require_writable(args.json)
    return {"complexity": _complexity, "throughput": _throughput, "robustness": robustness.run}[args.action](args)


def _complexity(args: argparse.Namespace) -> int:
    from mixtransfer.zoo import list_archs

    known = {path.stem for path in recipe_files()} - set(list_archs())
    configs = [name for name in args.names if name in known or name.endswith(".py") or "/" in name]
    if configs and len(configs) < len(args.names):
        raise UserError("complexity: architectures and configs make two tables; give one kind at a time")
    if (args.cfg_options or args.arch) and not configs:
        raise UserError("--arch, --cfg-options: change configs; give one, e.g. configs/det/mask_rcnn_swin.py")
    return _whole_models(args) if configs else _classifiers(args)


def _classifiers(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mixtransfer.backbones import backbone_class
    from mixtransfer.evaluation.complexity import complexity, table
    from mixtransfer.zoo import list_archs

    archs = args.names or list_archs()
    for arch in archs:
        backbone_class(arch)  # a misspelt name stops before anything is counted
    progress = progress_line("counted")
    rows = []
    for arch in archs:
        rows.append(complexity(arch, args.size and tuple(args.size)))
        progress(len(rows), len(archs))
    print(table(rows))
    write_json(args.json, [asdict(row) for row in rows])
    return 0


def _whole_models(args: argparse.Namespace) -> int:
    from mixtransfer.engine.build import one_line_errors
    from mixtransfer.evaluation.model_complexity import as_dict, model_complexity, table

    progress = progress_line("counted")
    rows = []
    with _prepared(args) as configs:
        for name, cfg in configs.items():
            # The figures printed for the recipe are not those of another network.
            recipe = None if args.cfg_options or args.arch else describe(find_config(name))
            with one_line_errors(name):
                rows.append(model_complexity(cfg, name, recipe, args.size and tuple(args.size)))
            progress(len(rows), len(configs))
            write_json(args.json, [as_dict(row) for row in rows])
    print(table(rows))
    return 0


@contextmanager
def _prepared(args: argparse.Namespace) -> Iterator[dict[str, Config]]:
    """Read configs whose models are built without data; all of them before the first model is."""
    from mixtransfer.engine.build import one_line_errors, prepare
    from mixtransfer.engine.config import load_config

    with TemporaryDirectory() as work_dir:
        settings = dict(arch=args.arch, options=args.cfg_options, work_dir=work_dir)
        configs = {name: load_config(name, (), **settings) for name in args.names}
        for name, cfg in configs.items():
            with one_line_errors(name):
                prepare(cfg, "predict")
        yield configs


def _throughput(args: argparse.Namespace) -> int:
    if args.checkpoint and len(args.names) > 1:
        raise UserError("--checkpoint: has the weights of one model; give one config")

    from dataclasses import asdict

    import torch

    from mixtransfer.checkpoints.fetch import located
    from mixtransfer.checkpoints.load import load_strictly
    from mixtransfer.checkpoints.read import find_weights, read_checkpoint
    from mixtransfer.engine.build import one_line_errors
    from mixtransfer.evaluation.environment import device_of, environment
    from mixtransfer.evaluation.model_complexity import published_size
    from mixtransfer.evaluation.throughput import build, sweep, table

    if args.checkpoint:
        args.checkpoint = str(located(args.checkpoint))
    device = device_of(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    about = {**environment(device), "dtype": args.dtype, "seconds": args.seconds, "checkpoint": args.checkpoint}
    rows = []
    with _prepared(args) as configs:
        progress = progress_line("measured")
        total = len(configs) * len(args.mode) * len(args.batch)
        for name, cfg in configs.items():
            with one_line_errors(name):
                model = build(cfg)
                if args.checkpoint:
                    weights = find_weights(read_checkpoint(args.checkpoint, args.trust), args.checkpoint)
                    load_strictly(model, weights, args.checkpoint)
                settings = dict(size=tuple(args.size or published_size(cfg)), device=device, dtype=args.dtype)
                kinds = dict(modes=args.mode, batches=sorted(args.batch), seconds=args.seconds)
                for row in sweep(model, cfg, name, **settings, **kinds):
                    rows.append(row)
                    progress(len(rows), total)
                    write_json(args.json, {"environment": about, "rows": [asdict(row) for row in rows]})
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None), end="\n\n")
    print(table(rows))
    if not args.checkpoint and "evaluation" in args.mode and any("rpn_head" in c.model for c in configs.values()):
        print(
            "\nUntrained detectors find little; the time of their tests is that of trained ones with --checkpoint FILE."
        )
    return 0
