"""Activation maps, where an image shows its class: label maps made beforehand, or the tokens of a frozen teacher.

TokenMix (Liu et al., ECCV 2022, arXiv 2207.08409; code Sense-X/TokenMix, MIT) reads the maps of TokenLabeling
(arXiv 2104.10858): for every cell of an 18 × 18 map of the whole image the scores of the five best classes of NFNet-F6.

Shapes: B batch, R best classes of a cell, h × w cells.

Different from the published code: the class that is read is gathered before the crop, where the published code crops
the maps of all classes; crops have their rows and columns in place, which the published code exchanges (a crop
``(left, top, width, height)`` is what it reads instead of ``(top, left, height, width)``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["class_map", "crop_map", "teacher_map"]


def class_map(label_maps: Tensor, labels: Tensor) -> Tensor:
    """Return the scores (B, h, w) of one class an image, 0 where it is not among the best.

    Args:
        label_maps: (B, 2, R, h, w), scores and class numbers.
        labels: (B,) classes.
    """
    scores, classes = label_maps.to(torch.promote_types(label_maps.dtype, torch.float32)).unbind(1)
    found = classes == labels.view(-1, 1, 1, 1)
    # A class named twice counts by its last rank, as in a scatter over the classes.
    later = found.flip(1).cumsum(dim=1).flip(1)
    return (scores * (found & (later == 1))).sum(dim=1)


def crop_map(maps: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the part of maps (B, h, w) that a crop of the image shows, resampled to ``size``.

    Args:
        maps: of the whole images.
        crops: (B, 4), the crop's top, left, height and width as shares of the image's sides.
        size: the grid of the crop.
    """
    from torchvision.ops import roi_align

    top, left, height, width = crops.to(maps).unbind(1)
    rows, columns = maps.shape[1:]
    boxes = torch.stack([left * columns, top * rows, (left + width) * columns, (top + height) * rows], dim=1)
    index = torch.arange(len(maps), device=maps.device, dtype=maps.dtype)[:, None]
    return roi_align(maps[:, None], torch.cat([index, boxes], dim=1), size, aligned=True)[:, 0]


def teacher_map(seen: Mapping[str, Tensor], head: nn.Linear, labels: Tensor) -> Tensor:
    """Return the activation map (B, h, w): the probability of each image's class at every token, by a head on tokens.

    Args:
        seen: a backbone's evidence, ``"tokens"`` (B, D, h, w) among it.
        head: the classifier's.
        labels: (B,) classes.
    """
    scores = head(seen["tokens"].permute(0, 2, 3, 1)).softmax(dim=-1)
    return scores.gather(3, labels.view(-1, 1, 1, 1).expand(*scores.shape[:3], 1))[..., 0]
