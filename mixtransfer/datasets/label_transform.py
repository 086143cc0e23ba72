"""Segmentation labels are looked at as they are loaded: their size, and that every value is a class or void."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import Config, ConfigDict

from mixtransfer.datasets.folders import VOID
from mixtransfer.errors import UserError
from mixtransfer.registry import TRANSFORMS

__all__ = ["CheckLabels", "add_label_check"]


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Stop at a mask that does not belong to its image or to the classes; put right after ``LoadAnnotations``.

    Args:
        num_classes: labels 0 … ``num_classes`` − 1 are classes, 255 is void.

    Raises:
        UserError: naming the mask.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def transform(self, results: dict) -> dict:
        """Return ``results`` as they are."""
        labels, name = results["gt_seg_map"], results["seg_map_path"]
        wanted = tuple(results["ori_shape"][:2])
        if labels.shape[:2] != wanted:
            raise UserError(
                f"{name}: the mask has {labels.shape[1]}×{labels.shape[0]} pixels, its image {wanted[1]}×{wanted[0]};"
                " see tools/data.py check"
            )
        bad = np.unique(labels[(labels >= self.num_classes) & (labels != VOID[1])])
        if bad.size:
            stored = int(bad[0]) + bool(results.get("reduce_zero_label"))
            raise UserError(
                f"{name}: label {stored} is outside the {self.num_classes} classes; correct the mask or classes.txt,"
                " see tools/data.py check"
            )
        return results


def add_label_check(cfg: Config) -> None:
    """Put :class:`CheckLabels` after every ``LoadAnnotations`` of a segmentation config, in place."""
    heads = cfg.model.decode_head
    classes = (heads if isinstance(heads, Mapping) else heads[-1]).num_classes
    for split in ("train", "val", "test"):
        _add(cfg.get(f"{split}_dataloader") or {}, ConfigDict(type="mixtransfer.CheckLabels", num_classes=classes))


def _add(part: object, check: ConfigDict) -> None:
    if isinstance(part, Mapping):
        for value in part.values():
            _add(value, check)
    elif isinstance(part, list):
        for value in part:
            _add(value, check)
        loads = [i for i, step in enumerate(part) if isinstance(step, Mapping) and _is_loading(step)]
        for place in reversed(loads):
            part.insert(place + 1, check)


def _is_loading(step: Mapping) -> bool:
    return str(step.get("type")).rpartition(".")[2] == "LoadAnnotations"
