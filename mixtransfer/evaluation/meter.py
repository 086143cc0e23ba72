"""The record of a measurement: what was measured on what with what, such that the same run gives the same bytes.

Times, memory and the machine are kept apart, since they differ from run to run; so is what is counted image by image.
"""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import collect_results
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixtransfer.checkpoints.read import find_weights
from mixtransfer.engine.config import task_of
from mixtransfer.engine.parts import model_of
from mixtransfer.evaluation.complexity import FORMULAS
from mixtransfer.evaluation.environment import peak_memory
from mixtransfer.evaluation.identity import Fingerprints, commit, content_hash, digest, resolved, versions
from mixtransfer.evaluation.records import SCHEMA, percentages, pixel_counts, plain

__all__ = ["Meter", "measured", "origin_of"]

#: Iterations at the end of training whose mean is its final loss.
LAST = 50


class Meter(Hook):
    """Measures what a test costs, and keeps what it counts image by image.

    ``images`` holds, after the test, one entry an image, in the order of the dataset: of a segmentor the pixels of each
    class that occurs, as [right, predicted, labeled]; of a detector the detections, as COCO's results are, and which of
    them the AP counts as right; of a classifier its label, its prediction, and the score of that.

    Args:
        per_image: whether detections and predicted classes are kept; pixels are always counted.
    """

    def __init__(self, per_image: bool = True):
        self.per_image = per_image
        self.images: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []
        self.macs, self.input, self.seconds, self.tested = 0, [0, 0], 0.0, 0

    def before_test_epoch(self, runner: Runner) -> None:
        """Begin."""
        self.found, self.tested, self.seconds = [], 0, 0.0

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Count the multiply-accumulates of the first batch, once."""
        if batch_idx == 0:
            self._count(runner, data_batch)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        self.begun = time.perf_counter()

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep what was found."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self.begun
        self.tested += len(outputs)
        self.found += [_of_image(sample) for sample in outputs if self.per_image or "pred_sem_seg" in sample]

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Gather what all processes have."""
        gathered = collect_results(self.found, len(runner.test_dataloader.dataset), device="cpu")
        self.images = gathered or []
        for metric in runner.test_evaluator.metrics if self.per_image else ():
            for kind, rows in getattr(metric, "matches", {}).items():
                for image, row in zip(self.images, rows, strict=True):
                    image.setdefault("matches", {})[kind] = row

    def _count(self, runner: Runner, batch: Any) -> None:
        model = model_of(runner)
        inputs = batch["inputs"]
        # With test-time augmentation a batch holds one of each view.
        views = isinstance(inputs[0], list | tuple)
        self.input = list((inputs[0][0] if views else inputs[0]).shape[-2:])
        few = {key: [view[:1] for view in value] if views else value[:1] for key, value in batch.items()}
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # The counter cannot follow parameters that are handed from module to module.
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model.test_step(copy.deepcopy(few))
        for parameter in trained:
            parameter.requires_grad_(True)
        self.macs = counter.get_total_flops() // 2

    def cost(self) -> dict[str, Any]:
        """Return what differs from run to run: the machine, the test's images a second, and the most memory, in MB."""
        gpu = torch.cuda.is_available()
        cost = {
            "host": platform.node(),
            "device": torch.cuda.get_device_name() if gpu else "cpu",
            "threads": torch.get_num_threads(),
            "images_per_second": round(self.tested / max(self.seconds, 1e-9), 3),
        }
        peak = peak_memory(torch.device("cuda" if gpu else "cpu"))
        return cost if peak is None else cost | {"test_peak_memory_mb": round(peak, 1)}


def _of_image(sample: Any) -> dict[str, Any]:
    name = {"image": Path(str(getattr(sample, "img_path", ""))).name}
    if "pred_sem_seg" in sample:
        predicted, labeled = (part.data.squeeze().cpu().numpy() for part in (sample.pred_sem_seg, sample.gt_sem_seg))
        counted = labeled != 255
        predicted, labeled = predicted[counted].astype(np.int64), labeled[counted].astype(np.int64)
        length = int(max(predicted.max(initial=0), labeled.max(initial=0))) + 1
        right = np.bincount(labeled[predicted == labeled], minlength=length)
        rows = np.stack([right, np.bincount(predicted, minlength=length), np.bincount(labeled, minlength=length)], 1)
        return name | {"pixels": {str(k): row.tolist() for k, row in enumerate(rows) if row.any()}}
    if "pred_instances" in sample:
        return name | {"detections": _detections(sample)}
    scores = sample.pred_score
    return name | {
        "label": sample.gt_label.tolist(),
        "predicted": int(scores.argmax()),
        "score": float(scores.max()),
    }


def _detections(sample: Any) -> list[dict[str, Any]]:
    found = sample.pred_instances
    boxes, scores, labels = (found[key].cpu().numpy() for key in ("bboxes", "scores", "labels"))
    results = [
        {"image_id": int(sample.img_id), "category": int(label), "score": float(score)}
        | {"bbox": [float(x), float(y), float(right - x), float(bottom - y)]}
        for (x, y, right, bottom), score, label in zip(boxes, scores, labels, strict=True)
    ]
    if "masks" in found:
        from pycocotools import mask as coco_mask

        for result, mask in zip(results, found.masks.cpu().numpy(), strict=True):
            run = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            result["segmentation"] = {"size": list(run["size"]), "counts": run["counts"].decode("ascii")}
    return results


def origin_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return where weights come from, as a checkpoint tells: hash, seed, iterations, selection, final training loss.

    The hash is over names and values of the weights, since a file also holds times. Entries that a file does not have
    are absent.
    """
    meta = content.get("meta") or {}
    origin: dict[str, Any] = {"sha256": digest(find_weights(content, name))}
    origin.update({key: meta[own] for key, own in (("seed", "seed"), ("iterations", "iter")) if own in meta})
    best = Path(name).name.startswith("best_")
    origin["selection"] = "best on the validation split" if best else "last iteration"
    scalars = (content.get("message_hub") or {}).get("log_scalars") or {}
    if "train/loss" in scalars:
        values = np.asarray(scalars["train/loss"][0], np.float64)[-LAST:]
        if len(values):
            origin["training_loss"] = float(values.mean())
    return origin


def measured(
    runner: Runner, meter: Meter, cfg: Config, origin: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of a test.

    Args:
        runner: after the test.
        meter: the hook that it ran with.
        cfg: its config, as it was before it was prepared for the test.
        origin: from :func:`origin_of`.
        metrics: what the test's metrics returned. A segmentor's means are taken from the counted pixels instead, and a
            detector's as they were before rounding, since mmseg and mmdet round them.
    """
    classes: dict[str, Any] = {}
    found = plain(metrics)
    for metric in runner.test_evaluator.metrics:
        classes.update(plain(getattr(metric, "per_class", {})))
        exact = {f"{metric.prefix}/{key}": value for key, value in getattr(metric, "exact", {}).items()}
        found.update({key: value for key, value in exact.items() if key in found})
    names = (runner.test_dataloader.dataset.metainfo or {}).get("classes") or ()
    if meter.images and "pixels" in meter.images[0]:
        exact = percentages(pixel_counts(meter.images, len(names)).sum(0))
        found.update({key: value for key, value in exact.items() if key in found})
    config = resolved(cfg)
    return {
        "schema": SCHEMA,
        "task": task_of(cfg),
        "metrics": found,
        "per_class": classes,
        "dataset": {
            "split": "validation",
            "fingerprint": Fingerprints().of(cfg, "test"),
            "images": len(runner.test_dataloader.dataset),
            "classes": list(names),
        },
        "weights": dict(origin),
        "model": {
            "parameters": sum(parameter.numel() for parameter in model_of(runner).parameters()),
            "macs": meter.macs,
            "input": meter.input,
        },
        "config_hash": content_hash(config),
        "resolved_config": config,
        "versions": versions(),
        **commit(),
    }
