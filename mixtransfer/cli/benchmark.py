"""``benchmark``: count cost and measure robustness; ``speed`` is a command of a checkout (benchmarks/command.py)."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtransfer.cli.options import positive
from mixtransfer.errors import UserError
from mixtransfer.progress import progress_line

if TYPE_CHECKING:
    from mixtransfer.engine.runner import TransferRunner


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``benchmark`` with its actions."""
    main = argparse.ArgumentParser(
        prog="mixtransfer benchmark", description="Measure speed, complexity and robustness."
    )
    commands = main.add_subparsers(dest="action", required=True, metavar="{speed,complexity,robustness}")
    # Whatever follows the word is taken, options too.
    speed = commands.add_parser(
        "speed", add_help=False, prefix_chars="\0", help="compare speed with other implementations, in a checkout"
    )
    speed.add_argument("options", nargs="*")
    count = commands.add_parser(
        "complexity",
        help="count parameters and multiply-accumulates",
        description="Print the parameters and multiply-accumulates (papers: FLOPs) of classifiers.",
    )
    count.add_argument("archs", nargs="*", metavar="ARCH", help="architecture names (default: all)")
    count.add_argument(
        "--size", type=positive, nargs=2, metavar=("H", "W"), help="pixels (default: the published size of each)"
    )
    count.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    robustness = commands.add_parser(
        "robustness",
        help="measure a classifier on corrupted images",
        description="Measure a classifier's top-1 accuracy on images in ImageNet-C's layout, and print a table of "
        "corruptions and severities, the mean corruption error (mCE) if all its 15 corruptions are there, and the "
        "share of the clean accuracy that is left.",
    )
    robustness.add_argument("config", metavar="CONFIG", help="a classifier's config, e.g. configs/pretrain/fan.py")
    robustness.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of the config's whole model")
    robustness.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with corruption/severity/class/image"
    )
    robustness.add_argument(
        "--clean", type=Path, metavar="DIR", help="clean images, class/image (default: DIR/clean of --data, if there)"
    )
    robustness.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change entries of the config, e.g. test_dataloader.batch_size=256",
    )
    robustness.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    robustness.add_argument(
        "--trust", action="store_true", help="let the checkpoint run code (only if you know its author)"
    )
    return main


def run(args: argparse.Namespace) -> int:
    """Run one of the actions."""
    if args.action == "speed":
        raise UserError("speed: others' ways of computing are in a checkout only; run tools/benchmark.py speed in one")
    require_writable(args.json)
    return {"complexity": _complexity, "robustness": _robustness}[args.action](args)


def _complexity(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mixtransfer.backbones import backbone_class
    from mixtransfer.evaluation.complexity import complexity, table
    from mixtransfer.zoo import list_archs

    archs = args.archs or list_archs()
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


def _robustness(args: argparse.Namespace) -> int:
    from mixtransfer.checkpoints.headers import require_file
    from mixtransfer.checkpoints.read import read_checkpoint
    from mixtransfer.datasets.classes import in_order, trained_classes
    from mixtransfer.engine.build import build_runner, one_line_errors, prepare
    from mixtransfer.engine.config import load_config, task_of
    from mixtransfer.evaluation.robustness import for_cropped_images, open_corrupted, summary, table

    require_file(args.checkpoint)
    images = open_corrupted(args.data, args.clean)
    with tempfile.TemporaryDirectory() as work_dir:
        cfg = load_config(args.config, (), options=args.cfg_options, work_dir=work_dir)
        if task_of(cfg) != "cls":
            raise UserError(f"{args.config}: no classifier's config; give one of configs/pretrain")
        count = cfg.model.get("num_classes") or cfg.model.get("head", {}).get("num_classes")
        if count not in (None, len(images.classes)):
            raise UserError(
                f"--data {args.data}: {len(images.classes)} class folders, and the model of {args.config} has {count} "
                "classes; give images of its classes"
            )
        trained = trained_classes(read_checkpoint(args.checkpoint, args.trust))
        classes = in_order(images.classes, trained, args.checkpoint)
        cfg.load_from, cfg.custom_hooks = args.checkpoint, []
        dataset = cfg.test_dataloader.dataset
        while "dataset" in dataset:
            dataset = dataset.dataset
        pipeline, cropped = dataset.pipeline, for_cropped_images(dataset.pipeline)
        jobs = [(path, cropped) for paths in images.folders.values() for path in paths]
        if images.clean:
            jobs.insert(0, (images.clean, pipeline))
        with one_line_errors(args.config):
            prepare(cfg, "test")
            runner = build_runner(cfg, args.trust)
            runner.load_or_resume()
            found = iter(_accuracies(runner, jobs, classes))
    clean = next(found) if images.clean else None
    top1 = {name: [next(found) for _ in paths] for name, paths in images.folders.items()}
    print(table(top1, clean))
    about = {"config": args.config, "checkpoint": args.checkpoint, "data": str(args.data)}
    write_json(args.json, {**about, "top1": top1, "summary": summary(top1, clean)})
    return 0


def _accuracies(runner: TransferRunner, jobs: Sequence[tuple[Path, list]], classes: Sequence[str]) -> list[float]:
    """Return the top-1 accuracy in percent on each folder of class folders, read by its pipeline."""
    import torch
    from mmengine.evaluator import Evaluator

    model, found = runner.model.eval(), []
    progress, before = progress_line("batches measured"), 0
    for number, (folder, pipeline) in enumerate(jobs):
        dataset = {
            "type": "mixtransfer.ClassFolders",
            "data_prefix": str(folder),
            "pipeline": pipeline,
            "metainfo": {"classes": classes},
        }
        loader = runner.build_dataloader(
            {**runner.cfg.test_dataloader, "dataset": dataset, "persistent_workers": False}, seed=runner.seed
        )
        evaluator = Evaluator({"type": "mmpretrain.Accuracy", "topk": (1,)})
        # Folders still to come are taken to be as long as this one.
        total = before + len(loader) * (len(jobs) - number)
        for done, batch in enumerate(loader, before + 1):
            with torch.no_grad():
                evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
            progress(done, total)
        before += len(loader)
        found.append(float(evaluator.evaluate(len(loader.dataset))["accuracy/top1"]))
    return found


def require_writable(path: Path | None) -> None:
    """Check that the file of ``--json`` can be written by opening it: root passes a folder's permissions."""
    if path is None:
        return
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            writable = not path.is_dir()
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"--json {path}: cannot be written; give a file in a folder that exists")


def write_json(path: Path | None, content: Any) -> None:
    """Write the file of ``--json``, if given, whole or not at all."""
    from mixtransfer.checkpoints.whole_files import replace_whole

    if path is not None:
        with replace_whole(path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
