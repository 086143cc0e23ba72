"""Masks of segmentors as they are loaded: judged before anything wraps around, and named where they cannot be used."""

from __future__ import annotations

import numpy as np
from mmengine import fileio

from mixtransfer.datasets.stored import Unusable, count_labels, read_mask, require_labels
from mixtransfer.datasets.transforms import SEE_CHECK
from mixtransfer.errors import UserError
from mixtransfer.registry import TRANSFORMS, import_quietly

__all__ = ["LoadLabels"]

LoadAnnotations = import_quietly("mmseg.datasets.transforms").LoadAnnotations


@TRANSFORMS.register_module()
class LoadLabels(LoadAnnotations):
    """mmseg's ``LoadAnnotations`` of segmentation masks, which wraps nothing around and names the mask.

    mmseg casts whatever a file holds to 8 bits and removes sides of one pixel.

    Args:
        num_classes: the model's classes; 255 is void, and 0 too where the dataset reduces labels.

    Raises:
        UserError: naming the mask.
    """

    def __init__(self, num_classes: int, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def _load_seg_map(self, results: dict) -> None:
        path, reduced = results["seg_map_path"], bool(results["reduce_zero_label"])
        if self.reduce_zero_label is not None and bool(self.reduce_zero_label) != reduced:
            raise UserError(
                f"LoadAnnotations.reduce_zero_label={self.reduce_zero_label}: the dataset has {reduced}; leave it out"
            )
        try:
            labels = read_mask(path, fileio.get(path, backend_args=self.backend_args))
            # What a label map drops is void.
            stored = len(results["label_map"]) if results.get("label_map") else self.num_classes
            require_labels(count_labels(labels), stored, (0, 255) if reduced else (255,))
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such mask; {SEE_CHECK}") from error
        except Unusable as error:
            raise UserError(f"{path}: {error}; {SEE_CHECK}") from error
        wanted = tuple(results["ori_shape"][:2])
        if labels.shape != wanted:
            raise UserError(
                f"{path}: the mask has {labels.shape[0]}x{labels.shape[1]} pixels, its image {wanted[0]}x{wanted[1]};"
                f" {SEE_CHECK}"
            )
        table = np.arange(256, dtype=np.uint8)
        if reduced:
            table = np.array([255, *range(254), 255], np.uint8)
        for old, new in (results.get("label_map") or {}).items():
            table[old + reduced] = new
        results["gt_seg_map"] = table[labels]
        results["seg_fields"].append("gt_seg_map")
