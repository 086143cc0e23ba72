"""``benchmark robustness``: ImageNet-C, -A and -R for classifiers; others see images that are corrupted on the fly."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mixtransfer.cli.options import write_json
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.progress import progress_line

if TYPE_CHECKING:
    from mmengine.config import Config

    from mixtransfer.engine.runner import TransferRunner

__all__ = ["add_parser", "run"]

#: Scores of segmentors and detectors that are reported, as the metrics name them.
SCORES = ("mIoU", "coco/bbox_mAP", "coco/segm_mAP")


def add_parser(commands: Any) -> None:
    """Add the parser of ``robustness`` to the actions of ``benchmark``."""
    options = commands.add_parser(
        "robustness",
        help="measure a model on corrupted or unusual images",
        description="Classifiers: top-1 accuracy on images in ImageNet-C's layout, with the mean corruption error"
        " (mCE) if all its 15 corruptions are there and the share of the clean accuracy that is left; or on the 200"
        " classes of ImageNet-A or ImageNet-R. Segmentors and detectors: mIoU or AP on validation images that are"
        " corrupted as they are loaded, with the mean over corruptions and severities (mPC) and its share of the clean"
        " score (rPC).",
    )
    options.add_argument("config", metavar="CONFIG", help="a config, e.g. configs/pretrain/fan.py")
    options.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of the config's whole model")
    options.add_argument(
        "--data",
        metavar="DIR",
        help="classifiers: folder with corruption/severity/class/image, or WordNet id/image; others: a dataset folder"
        " to use instead of the config's",
    )
    options.add_argument(
        "--clean",
        type=Path,
        metavar="DIR",
        help="classifiers: clean images, class/image (default: DIR/clean of --data, if there)",
    )
    options.add_argument(
        "--backgrounds",
        metavar="FOLDER",
        help="classifiers: swap the backgrounds of --data's validation images instead, by the foreground maps in this"
        " folder of it, e.g. maps/foreground (mixtransfer data maps writes them)",
    )
    options.add_argument(
        "--corruptions",
        nargs="+",
        metavar="NAME",
        help="segmentors and detectors: which (default: the 15 of the benchmark; 'all': the 19 that FAN makes)",
    )
    options.add_argument(
        "--severities",
        type=int,
        nargs="+",
        choices=range(1, 6),
        metavar="N",
        help="segmentors and detectors: which of 1 to 5 (default: all)",
    )
    options.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change entries of the config, e.g. test_dataloader.batch_size=256",
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options.add_argument(
        "--trust", action="store_true", help="let the checkpoint run code (only if you know its author)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure; return 0."""
    from mixtransfer.checkpoints.fetch import located
    from mixtransfer.engine.config import load_config, task_of

    args.checkpoint = str(located(args.checkpoint))
    with TemporaryDirectory() as work_dir:
        cfg = load_config(args.config, (), options=args.cfg_options, work_dir=work_dir)
        if task_of(cfg) != "cls":
            return _dense(args, work_dir)
        if args.corruptions or args.severities:
            raise UserError("--corruptions, --severities: images for classifiers are corrupted already; leave it out")
        if not args.data:
            raise UserError("--data: give the folder of the corrupted images, or of ImageNet-A or ImageNet-R")
        return _backgrounds(cfg, args) if args.backgrounds else _classifier(cfg, args)


def _dense(args: argparse.Namespace, work_dir: str) -> int:
    from mixtransfer.registry import import_quietly

    import_quietly("mixtransfer.evaluation.metrics")
    from mixtransfer.checkpoints.read import read_checkpoint
    from mixtransfer.datasets.classes import match_classes, trained_classes
    from mixtransfer.datasets.configure import leaf_datasets
    from mixtransfer.engine.config import load_config
    from mixtransfer.evaluation import corruptions

    if args.clean or args.backgrounds:
        raise UserError("--clean, --backgrounds: they are for classifiers; leave it out")
    known = {"all": (*corruptions.COMMON, *corruptions.EXTRA), None: corruptions.COMMON}
    key = args.corruptions[0] if args.corruptions and len(args.corruptions) == 1 else args.corruptions
    names = known[key] if not isinstance(key, list) and key in known else args.corruptions
    for name in names:
        if name not in known["all"]:
            raise unknown_name("corruption", name, known["all"])
    corruptions.require_package()
    severities = sorted(set(args.severities or range(1, 6)))
    cfg = load_config(args.config, ("test",), options=args.cfg_options, data=args.data, work_dir=work_dir)
    match_classes(cfg, trained_classes(read_checkpoint(args.checkpoint, args.trust)), args.checkpoint)
    jobs = [(None, 0), *((name, severity) for name in names for severity in severities)]
    about = {"config": args.config, "checkpoint": args.checkpoint, "data": args.data, "severities": severities}
    clean: dict[str, float] = {}
    scores: dict[str, dict[str, list[float]]] = {}
    with _runner(cfg, args) as runner:
        for done, (name, severity) in enumerate(jobs):
            loader = runner.cfg.test_dataloader.to_dict()
            for dataset in leaf_datasets(loader["dataset"]) if name else ():
                dataset["pipeline"] = corruptions.corrupted(dataset["pipeline"], name, severity)
            progress = progress_line(f"{name or 'clean'}, {done + 1} of {len(jobs)}")
            measured = _measured(runner, loader, cfg.test_evaluator, progress)
            for score in SCORES:
                if score not in measured:
                    continue
                # COCO's AP is a fraction.
                value = float(measured[score]) * (100 if score.startswith("coco/") else 1)
                if name is None:
                    clean[score] = value
                else:
                    scores.setdefault(score, {}).setdefault(name, []).append(value)
            # After each, so that a run that is stopped leaves what it measured.
            write_json(args.json, {**about, "clean": clean, "scores": scores})
    if not scores:
        raise UserError(f"{args.config}: its test_evaluator reports none of {', '.join(SCORES)}")
    for score, found in scores.items():
        print(corruptions.table(score.rpartition("/")[2], found, severities, clean[score]), end="\n\n")
    whole = {score: corruptions.summary(found, clean[score]) for score, found in scores.items()}
    write_json(args.json, {**about, "clean": clean, "scores": scores, "summary": whole})
    return 0


def _classifier(cfg: Config, args: argparse.Namespace) -> int:
    from mixtransfer.checkpoints.read import read_checkpoint
    from mixtransfer.datasets.classes import in_order, trained_classes
    from mixtransfer.datasets.configure import leaf_datasets
    from mixtransfer.evaluation.robustness import (
        for_cropped_images,
        open_corrupted,
        open_subset,
        outputs_of,
        summary,
        table,
    )

    root = Path(args.data)
    count = cfg.model.get("num_classes") or cfg.model.get("head", {}).get("num_classes")
    pipeline = next(iter(leaf_datasets(cfg.test_dataloader.dataset))).pipeline
    about = {"config": args.config, "checkpoint": args.checkpoint, "data": args.data}
    trained = trained_classes(read_checkpoint(args.checkpoint, args.trust))
    subset = open_subset(root)
    if subset is not None:
        outputs = outputs_of(subset, trained, count, args.data)
        jobs = {args.data: (root, pipeline), **({"clean": (args.clean, pipeline)} if args.clean else {})}
        with _runner(cfg, args) as runner:
            found = list(_accuracies(runner, list(jobs.values()), subset, outputs))
        top1 = dict(zip(jobs, found, strict=True))
        for name, value in top1.items():
            print(f"{name}: top-1 {value:.2f} of {len(subset)} classes")
        write_json(args.json, {**about, "classes": len(subset), "top1": top1})
        return 0
    images = open_corrupted(root, args.clean)
    if count not in (None, len(images.classes)):
        raise UserError(
            f"--data {args.data}: {len(images.classes)} class folders, and the model of {args.config} has {count} "
            "classes; give images of its classes"
        )
    classes = in_order(images.classes, trained, args.checkpoint)
    cropped = for_cropped_images(pipeline)
    jobs = [(path, cropped) for paths in images.folders.values() for path in paths]
    if images.clean:
        jobs.insert(0, (images.clean, pipeline))
    with _runner(cfg, args) as runner:
        found = iter(list(_accuracies(runner, jobs, classes)))
    clean = next(found) if images.clean else None
    top1 = {name: [next(found) for _ in paths] for name, paths in images.folders.items()}
    print(table(top1, clean))
    write_json(args.json, {**about, "top1": top1, "summary": summary(top1, clean)})
    return 0


def _backgrounds(cfg: Config, args: argparse.Namespace) -> int:
    from mixtransfer.checkpoints.read import read_checkpoint
    from mixtransfer.datasets.classes import in_order, trained_classes
    from mixtransfer.datasets.configure import apply_dataset, leaf_datasets
    from mixtransfer.datasets.folders import open_dataset
    from mixtransfer.evaluation.robustness import with_swapped_backgrounds, without_background

    folder = open_dataset(args.data, "cls")
    apply_dataset(cfg, folder)
    images = folder.root / folder.val.images
    alone = without_background(images, folder.root, args.backgrounds)
    classes = in_order(folder.classes, trained_classes(read_checkpoint(args.checkpoint, args.trust)), args.checkpoint)
    plain = next(iter(leaf_datasets(cfg.test_dataloader.dataset))).pipeline
    pipelines = [plain, *with_swapped_backgrounds(plain, images, folder.root, args.backgrounds)]
    with _runner(cfg, args) as runner:
        clean, *swapped = _accuracies(runner, [(images, pipeline) for pipeline in pipelines], classes)
    mean = sum(swapped) / len(swapped)
    kept = f", {100 * mean / clean:.2f}% of it left" if clean else ""
    print(
        f"top-1 {clean:.2f}; backgrounds swapped {mean:.2f} ({min(swapped):.2f} to {max(swapped):.2f} in"
        f" {len(swapped)} draws){kept}\n{alone} of {folder.val.count} images have no background and stay as they are"
    )
    about = {"config": args.config, "checkpoint": args.checkpoint, "data": args.data, "backgrounds": args.backgrounds}
    write_json(args.json, {**about, "clean": clean, "swapped": swapped, "without_background": alone})
    return 0


@contextmanager
def _runner(cfg: Config, args: argparse.Namespace) -> Iterator[TransferRunner]:
    """Build the runner of a config with its checkpoint loaded; what it raises about the config is one line."""
    from mixtransfer.engine.build import build_runner, one_line_errors, prepare

    # Nothing is drawn, and a visualizer of the config's would be kept by its name after its folder is gone.
    cfg.load_from, cfg.custom_hooks, cfg.visualizer = args.checkpoint, [], None
    with one_line_errors(args.config):
        prepare(cfg, "test")
        runner = build_runner(cfg, args.trust)
        runner.load_or_resume()
        runner.model.eval()
        yield runner


def _accuracies(
    runner: TransferRunner,
    jobs: Sequence[tuple[Path, list]],
    classes: Sequence[str],
    outputs: Sequence[int] | None = None,
) -> Iterator[float]:
    """Yield the top-1 accuracy in percent on each folder of class folders, read by its pipeline.

    ``outputs`` are those of the model that stand for the classes; None for all.
    """
    for done, (folder, pipeline) in enumerate(jobs, 1):
        dataset = {
            "type": "mixtransfer.ClassFolders",
            "data_prefix": str(folder),
            "pipeline": pipeline,
            "metainfo": {"classes": classes},
        }
        progress = progress_line(f"batches, folder {done} of {len(jobs)}")
        metric = {"type": "mmpretrain.Accuracy", "topk": (1,)}
        loader = {**runner.cfg.test_dataloader, "dataset": dataset}
        yield float(_measured(runner, loader, metric, progress, outputs)["accuracy/top1"])


def _measured(
    runner: TransferRunner, loader: Mapping, metrics: Any, progress: Any, outputs: Sequence[int] | None = None
) -> Mapping[str, Any]:
    """Return what metrics say of the model on a loader's images."""
    import torch
    from mmengine.evaluator import Evaluator

    built = runner.build_dataloader({**loader, "persistent_workers": False}, seed=runner.seed)
    evaluator = Evaluator(metrics)
    evaluator.dataset_meta = built.dataset.metainfo
    for done, batch in enumerate(built, 1):
        with torch.no_grad():
            samples = runner.model.test_step(batch)
        if outputs is not None:
            samples = [_among(sample, outputs) for sample in samples]
        evaluator.process(data_samples=samples, data_batch=batch)
        progress(done, len(built))
    # pycocotools prints its own table.
    with redirect_stdout(io.StringIO()):
        return evaluator.evaluate(len(built.dataset))


def _among(sample: Any, outputs: Sequence[int]) -> Any:
    """Return a classifier's sample with the answer among some of its outputs, numbered anew."""
    from mmpretrain.structures import DataSample

    scores = sample.pred_score[list(outputs)]
    return DataSample().set_gt_label(sample.gt_label).set_pred_score(scores).set_pred_label(scores.argmax())
