"""Samples are looked at as they are loaded: the size of images, and what masks store, before anything wraps around."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.config import Config, ConfigDict

from mixtransfer.datasets.configure import type_name
from mixtransfer.datasets.stored import Unusable, count_labels, read_mask, require_labels, require_size
from mixtransfer.errors import UserError
from mixtransfer.registry import TRANSFORMS, import_quietly

__all__ = ["CheckImage", "LoadLabels", "add_checks"]

LoadAnnotations = import_quietly("mmseg.datasets.transforms").LoadAnnotations
SEE_CHECK = "see mixtransfer data check"


@TRANSFORMS.register_module()
class CheckImage(BaseTransform):
    """Stop at an image that cannot be used, or that has not the size that its annotations state.

    :func:`add_checks` puts it right after the image is loaded.

    Raises:
        UserError: naming the image.
    """

    def transform(self, results: dict) -> dict:
        """Return ``results`` as they are."""
        size = tuple(results["ori_shape"][:2])
        try:
            require_size(size)
        except Unusable as error:
            raise UserError(f"{results['img_path']}: {error}; {SEE_CHECK}") from error
        stated = results.get("height"), results.get("width")
        if None not in stated and stated != size:
            raise UserError(
                f"{results['img_path']}: the image has {size[0]}x{size[1]} pixels as it is loaded, its annotations"
                f" state {stated[0]}x{stated[1]}; {SEE_CHECK}"
            )
        return results


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


def add_checks(cfg: Config) -> None:
    """Let every pipeline of a config look at what it loads, in place: images always, masks of a segmentor."""
    heads = cfg.model.get("decode_head")
    head = heads if isinstance(heads, Mapping) or not heads else heads[-1]
    for split in ("train", "val", "test"):
        _add(cfg.get(f"{split}_dataloader") or {}, head and head.num_classes)


def _add(part: object, classes: int | None) -> None:
    if isinstance(part, Mapping):
        for value in part.values():
            _add(value, classes)
    elif isinstance(part, list):
        for value in part:
            _add(value, classes)
        for place in reversed(range(len(part))):
            step = part[place]
            if isinstance(step, Mapping) and type_name(step) == "LoadImageFromFile":
                check = ConfigDict(type="mixtransfer.CheckImage")
                # Configs share pipelines between splits.
                if part[place + 1 : place + 2] != [check]:
                    part.insert(place + 1, check)
            elif isinstance(step, Mapping) and type_name(step) == "LoadAnnotations" and classes:
                part[place] = ConfigDict({**step, "type": "mixtransfer.LoadLabels", "num_classes": classes})
