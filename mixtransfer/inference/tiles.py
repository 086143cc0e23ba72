"""Images that are too large for one pass: overlapping tiles, and how their answers become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import batched_nms

from mixtransfer.errors import UserError
from mixtransfer.inference.results import Classification, Detections, Segmentation

__all__ = ["Tile", "joined", "tiles_of"]

#: The part of a tile's side that it shares with its neighbor.
OVERLAP = 0.25
#: Two boxes of a class that overlap by this IoU are one instance that two tiles saw.
SAME = 0.5
#: A box that ends this close to the inner border of its tile is cut off by it.
EDGE = 1.0


@dataclass(frozen=True)
class Tile:
    """A part of an image, in pixels; ``inner`` is what it decides of a label map: up to the middle of the overlaps."""

    top: int
    left: int
    bottom: int
    right: int
    inner: tuple[int, int, int, int]


def tiles_of(size: tuple[int, int], side: int) -> list[Tile]:
    """Return tiles of at most ``side`` pixels a side that cover an image of (height, width), row by row.

    Raises:
        UserError: a side of less than 32 pixels.
    """
    if side < 32:
        raise UserError(f"tile={side}: give 32 pixels or more")
    rows, columns = (_spans(length, side) for length in size)
    return [
        Tile(top, left, bottom, right, (first, start, last, end))
        for top, bottom, first, last in rows
        for left, right, start, end in columns
    ]


def _spans(length: int, side: int) -> list[tuple[int, int, int, int]]:
    """Return begin and end of each tile along one side, and of the part that it decides."""
    if length <= side:
        return [(0, length, 0, length)]
    count = 1 + -(-(length - side) // max(1, round(side * (1 - OVERLAP))))
    begins = [round(k * (length - side) / (count - 1)) for k in range(count)]
    middles = [(begins[k] + begins[k - 1] + side) // 2 for k in range(1, count)]
    bounds = [0, *middles, length]
    return [(begin, begin + side, bounds[k], bounds[k + 1]) for k, begin in enumerate(begins)]


def joined(
    answers: Sequence[tuple[Tile, Segmentation | Detections | Classification]], size: tuple[int, int]
) -> Segmentation | Detections:
    """Return the answers about tiles as one about the image of (height, width).

    A pixel has the label that the tile says whose middle is nearest. Boxes that the inner border of a tile cuts are
    left to the neighbor where it sees them whole; what both see is one instance, the surer one.
    """
    first = answers[0][1]
    if isinstance(first, Segmentation):
        labels = np.zeros(size, first.labels.dtype)
        for tile, answer in answers:
            top, left, bottom, right = tile.inner
            labels[top:bottom, left:right] = answer.labels[
                top - tile.top : bottom - tile.top, left - tile.left : right - tile.left
            ]
        return Segmentation(size, first.classes, labels)
    return _joined_detections([(tile, answer) for tile, answer in answers if isinstance(answer, Detections)], size)


def _joined_detections(answers: Sequence[tuple[Tile, Detections]], size: tuple[int, int]) -> Detections:
    parts = []
    for tile, answer in answers:
        boxes = answer.boxes + np.array([tile.left, tile.top, tile.left, tile.top], np.float32)
        cut = np.zeros(len(boxes), bool)
        for k, border, inner in (
            (0, tile.left, tile.left > 0),
            (1, tile.top, tile.top > 0),
            (2, tile.right, tile.right < size[1]),
            (3, tile.bottom, tile.bottom < size[0]),
        ):
            cut |= inner & (np.abs(boxes[:, k] - border) <= EDGE)
        parts.append((tile, answer, boxes, cut))
    boxes = np.concatenate([boxes for _, _, boxes, _ in parts])
    cut = np.concatenate([cut for *_, cut in parts])
    labels = np.concatenate([answer.labels for _, answer, *_ in parts])
    scores = np.concatenate([answer.scores for _, answer, *_ in parts])
    # Whole ones first, so that a piece of an instance never takes its place.
    rank = torch.from_numpy((scores - 2 * cut).astype(np.float32))
    kept = batched_nms(torch.from_numpy(boxes), rank, torch.from_numpy(labels), SAME).numpy()
    inside = _mostly_inside(boxes, labels, cut)
    kept = kept[~inside[kept]]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    first = answers[0][1]
    owner = np.concatenate([np.full(len(answer), k) for k, (_, answer) in enumerate(answers)]).astype(int)
    place = np.concatenate([np.arange(len(answer)) for _, answer in answers]).astype(int)
    masks = None
    if first.masks is not None:
        masks = np.zeros((len(kept), *size), bool)
        for row, k in enumerate(kept):
            tile, answer = answers[owner[k]]
            masks[row, tile.top : tile.bottom, tile.left : tile.right] = answer.masks[place[k]]
    rescored = None
    if first.mask_scores is not None:
        rescored = np.concatenate([answer.mask_scores for _, answer in answers])[kept]
    return Detections(size, first.classes, boxes[kept], labels[kept], scores[kept], masks, rescored)


def _mostly_inside(boxes: np.ndarray, labels: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Return which boxes are pieces of a whole one of their class: cut, and to three quarters inside it."""
    pieces = np.zeros(len(boxes), bool)
    whole = np.flatnonzero(~cut)
    for k in np.flatnonzero(cut):
        others = boxes[whole[labels[whole] == labels[k]]]
        if len(others):
            width = np.minimum(others[:, 2], boxes[k, 2]) - np.maximum(others[:, 0], boxes[k, 0])
            height = np.minimum(others[:, 3], boxes[k, 3]) - np.maximum(others[:, 1], boxes[k, 1])
            area = max((boxes[k, 2] - boxes[k, 0]) * (boxes[k, 3] - boxes[k, 1]), 1e-6)
            pieces[k] = (np.clip(width, 0, None) * np.clip(height, 0, None) / area).max() > 0.75
    return pieces
