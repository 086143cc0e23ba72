"""Metrics of mmseg and mmdet, counted exactly and in memory, that also keep their values class by class."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmseg.evaluation import IoUMetric
from torch import Tensor

from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.datasets.coco import read_coco
from mixtransfer.evaluation.coco import evaluate
from mixtransfer.registry import METRICS

__all__ = ["ClassAP", "ClassIoU", "areas"]


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """mmseg's IoU, from exact counts; ``per_class`` holds the averaged values in percent.

    mmseg adds pixels up in float32, which loses single ones from 2²⁴ pixels of a class on. Here they are integers, and
    stay on the device until all images are counted. A class that never occurs is not-a-number.
    """

    @staticmethod
    def intersect_and_union(
        pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the pixels of each class in intersection, union, prediction and ground truth, (K,) each."""
        shared, predicted, real = areas(pred_label, label, num_classes, ignore_index)
        return shared, predicted + real - shared, predicted, real

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the means over ``size`` images; the counts come to the host in one read."""
        if self.results and isinstance(self.results[0], tuple):
            counts = torch.stack([torch.stack(areas) for areas in self.results]).cpu()
            self.results = [tuple(image.unbind()) for image in counts]
        return super().evaluate(size)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return mmseg's means over classes, in percent."""
        self.per_class: dict[str, dict[str, float]] = {}
        metrics = super().compute_metrics(results)
        if not self.format_only:
            totals = (sum(counts) for counts in zip(*results, strict=True))
            values = self.total_area_to_metrics(*totals, self.metrics, self.nan_to_num, self.beta)
            for i, name in enumerate(self.dataset_meta["classes"]):
                self.per_class[name] = {key: 100 * float(v[i]) for key, v in values.items() if v.ndim}
        return metrics

    @staticmethod
    def total_area_to_metrics(*areas: Any, **options: Any) -> dict[str, Any]:
        """Return mmseg's numbers of summed areas, divided in float64."""
        totals = [area.double() if isinstance(area, Tensor) else area for area in areas]
        return IoUMetric.total_area_to_metrics(*totals, **options)


def areas(predicted: Tensor, real: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return the pixels of each class, (3, K) integers: found rightly, predicted, and in the ground truth.

    Args:
        predicted: classes (H, W).
        real: classes (H, W); those of ``ignore_index`` count nowhere, others outside of 0 to K − 1 in no class.
        num_classes: K.
        ignore_index: the class of pixels that do not count.
    """
    counted = real != ignore_index
    rows = (counted & (predicted == real), counted, counted)
    bins = []
    for number, (row, classes) in enumerate(zip(rows, (predicted, predicted, real), strict=True)):
        inside = row & (classes >= 0) & (classes < num_classes)
        bins.append(torch.where(inside, classes.long() + number * num_classes, 3 * num_classes).flatten())
    index = torch.cat(bins)
    if index.device.type == "cpu":
        return index.bincount(minlength=3 * num_classes + 1)[:-1].view(3, -1)
    # bincount reads the largest value back to the host.
    counts = index.new_zeros(3 * num_classes + 1)
    return counts.scatter_add_(0, index, torch.ones_like(index))[:-1].view(3, -1)


@METRICS.register_module()
class ClassAP(CocoMetric):
    """mmdet's COCO metric without files between; ``per_class`` holds the AP of each class for boxes and for masks.

    mmdet rounds to three places; ``exact`` holds the means as they are, and ``matches``, by kind, what they follow from
    image by image.

    A model that finds nothing has an AP of 0. Proposals, and runs that only format, are mmdet's own.

    Args:
        numbered_as: the annotation file whose numbers of images and categories the written files have, if any.
        settings: as :class:`mmdet.evaluation.CocoMetric`.
    """

    def __init__(self, *args: Any, numbered_as: str | None = None, **settings: Any):
        super().__init__(*args, **{**settings, "classwise": True})
        self.numbered_as = numbered_as

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        """Write the answers, in the numbers of the file that the metric reads or of ``numbered_as``."""
        files = super().results2json(results, outfile_prefix)
        if self.numbered_as:
            content = read_coco(Path(self.numbered_as), annotated=False)
            images = {str(image["file_name"]): image["id"] for image in content["images"]}
            classes = {str(category["name"]): category["id"] for category in content["categories"]}
            names = {category["id"]: category["name"] for category in self._coco_api.dataset["categories"]}
            for path in {Path(file) for file in files.values()}:
                answers = json.loads(path.read_text(encoding="utf-8"))
                for answer in answers:
                    answer["image_id"] = images[self._coco_api.imgs[answer["image_id"]]["file_name"]]
                    answer["category_id"] = classes[names[answer["category_id"]]]
                with replace_whole(path) as partial:
                    partial.write_text(json.dumps(answers), encoding="utf-8")
        return files

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return mmdet's means over classes, fractions; nothing where answers are only written."""
        if self.format_only:
            self.per_class = {}
            return super().compute_metrics(results)
        self.exact: dict[str, float] = {}
        self.matches: dict[str, Sequence[Mapping[str, Any]]] = {}
        self.per_class = {name: {} for name in self.dataset_meta["classes"]}
        wanted, metrics = self.metrics, {}
        others = [kind for kind in wanted if kind not in ("bbox", "segm")]
        if others:
            self.metrics = others
            try:
                metrics.update(super().compute_metrics(results))
            finally:
                self.metrics = wanted
        truth, found = zip(*results, strict=True)
        content = self._truth(truth)
        if self.outfile_prefix is not None and not others:
            self.results2json(found, self.outfile_prefix)
        for kind in (kind for kind in wanted if kind not in others):
            if kind == "segm" and "masks" not in found[0]:
                raise KeyError("segm is not in results")
            metrics.update(self._kind(kind, content, found))
        return metrics

    def _truth(self, truth: Sequence[dict]) -> dict[str, Any]:
        """Return the content of the ground truth's file; without one, that of the samples."""
        if self._coco_api is None:
            with tempfile.TemporaryDirectory() as folder:
                self._coco_api = COCO(self.gt_to_coco_json(truth, f"{folder}/truth"))
        if self.cat_ids is None:
            self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta["classes"])
        return self._coco_api.dataset

    def _kind(self, kind: str, content: dict[str, Any], found: Sequence[dict]) -> dict[str, float]:
        result = evaluate(content, self.cat_ids, found, kind, self.proposal_nums, self.iou_thrs)
        for category, value in zip(self._coco_api.load_cats(self.cat_ids), result.by_class(), strict=True):
            self.per_class[category["name"]][f"{kind}_AP"] = round(value, 3)
        stats = result.stats()
        self.matches[kind] = result.images
        items = self.metric_items or ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
        self.exact.update({f"{kind}_{item}": stats[item] for item in items})
        return {f"{kind}_{item}": round(stats[item], 3) for item in items}
