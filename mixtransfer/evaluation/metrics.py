"""Metrics of mmseg and mmdet that also keep their values class by class."""

from __future__ import annotations

from typing import Any

from mmdet.evaluation import CocoMetric
from mmseg.evaluation import IoUMetric

from mixtransfer.registry import METRICS

__all__ = ["ClassAP", "ClassIoU"]


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """mmseg's IoU; ``per_class`` holds the averaged values in percent, not-a-number for a class that never occurs."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return mmseg's means over classes, in percent."""
        self.per_class: dict[str, dict[str, float]] = {}
        metrics = super().compute_metrics(results)
        if not self.format_only:
            values = self.total_area_to_metrics(
                *(sum(areas) for areas in zip(*results, strict=True)), self.metrics, self.nan_to_num, self.beta
            )
            for i, name in enumerate(self.dataset_meta["classes"]):
                self.per_class[name] = {key: 100 * float(v[i]) for key, v in values.items() if v.ndim}
        return metrics


@METRICS.register_module()
class ClassAP(CocoMetric):
    """mmdet's COCO metric; ``per_class`` holds the AP of each class for boxes and for masks.

    A model that finds nothing has an AP of 0.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "classwise": True})

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return mmdet's means over classes, fractions."""
        self.per_class = {name: {} for name in self.dataset_meta["classes"]}
        wanted, metrics = self.metrics, {}
        # One at a time: mmdet keeps the classes' numbers under names that the next kind would overwrite.
        for kind in wanted:
            self.metrics = [kind]
            found = super().compute_metrics(results)
            for name, values in self.per_class.items():
                values[f"{kind}_AP"] = float(found.pop(f"{name}_precision", 0.0))
            metrics.update({f"{kind}_mAP": 0.0, **found})
        self.metrics = wanted
        return metrics
