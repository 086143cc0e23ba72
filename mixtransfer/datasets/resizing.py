"""Crops of classifiers resized by torch's kernel for 8-bit images, in a tenth of Pillow's time.

Both filter with the same windows, wider where an image shrinks, and round to 8 bits between columns and rows, torch
with coarser weights: on noise as on photographs at most 2 of 255 levels apart, in fewer than 1 of 100 values
(``tests/datasets/test_resizing.py``). Columns come first, as in Pillow when the recipes were published; Pillow 13 takes
the cheaper order, which moves more values than that. Training takes torch's; tests keep Pillow's pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config

from mixtransfer.datasets.configure import type_name
from mixtransfer.registry import TRANSFORMS, import_quietly

__all__ = ["RandomResizedCrop", "resize", "resize_quickly"]

LibraryCrop = import_quietly("mmpretrain.datasets.transforms").RandomResizedCrop
#: Kinds of interpolation that torch has for 8-bit images.
KINDS = ("bilinear", "bicubic")


@TRANSFORMS.register_module()
class RandomResizedCrop(LibraryCrop):
    """mmpretrain's ``RandomResizedCrop`` with ``backend="pillow"``, the same crops in less time.

    Images that are not of 8 bits and several channels are resized by Pillow.

    Args:
        options: arguments of ``mmpretrain.RandomResizedCrop``.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``results`` with a random part of ``img`` (H, W, C) at the size ``scale``."""
        image = results["img"]
        if image.dtype != np.uint8 or image.ndim != 3 or self.interpolation not in KINDS:
            return super().transform(results)
        top, left, height, width = self.rand_crop_params(image)
        results["img"] = resize(image[top : top + height, left : left + width], self.scale, self.interpolation)
        results["img_shape"] = results["img"].shape
        return results


def resize(image: np.ndarray, size: tuple[int, int], kind: str) -> np.ndarray:
    """Return an 8-bit image (H, W, C) at ``size``, height first, without aliasing.

    Args:
        image: may be a part of a larger one.
        size: height and width in pixels.
        kind: one of :data:`KINDS`.
    """
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return F.interpolate(planes, size=tuple(size), mode=kind, antialias=True)[0].permute(1, 2, 0).numpy()


def resize_quickly(cfg: Config) -> None:
    """Let a classifier's training crop by :class:`RandomResizedCrop` where its config asks for Pillow, in place."""
    _replace(cfg.get("train_dataloader") or {})


def _replace(part: Any) -> None:
    if isinstance(part, dict):
        if type_name(part) == "RandomResizedCrop" and part.get("backend") == "pillow":
            part["type"] = "mixtransfer.RandomResizedCrop"
        for value in part.values():
            _replace(value)
    elif isinstance(part, list | tuple):
        for value in part:
            _replace(value)
