"""Non-maximum suppression and overlaps of boxes; boxes are (N, 4), x1, y1, x2, y2.

With ``offset`` 1 coordinates are those of pixels: a box is x2 − x1 + 1 wide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixtransfer.compat.ops import at_least_float32

__all__ = ["bbox_overlaps", "nms", "nms_match", "softnms"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the (K,) indices, best score first, of the boxes that survive suppression."""
    dtype = at_least_float32(boxes, scores)
    corners = boxes.to(dtype)
    if offset:
        corners = corners + corners.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(corners, scores.to(dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes by their overlap with better ones (Soft-NMS, arXiv 1704.04503).

    Args:
        boxes: (N, 4).
        scores: (N,).
        dets: (N, 5), takes box and lowered score of the boxes that are left, in the order of the result.
        iou_threshold: overlap from which on methods 0 and 1 act.
        sigma: width of method 2.
        min_score: boxes whose score falls below are discarded.
        method: 0 scores of 0 (plain suppression), 1 linear in the overlap, 2 Gaussian.
        offset: see the module.

    Returns:
        The (K,) indices of the boxes that are left, best lowered score first.
    """
    rest, values = torch.arange(len(boxes), device=boxes.device), scores.clone()
    chosen, lowered = [], []
    while len(rest):
        best = int(values.argmax())
        index = rest[best]
        chosen.append(index)
        lowered.append(values[best])
        others = torch.arange(len(rest), device=rest.device) != best
        rest, values = rest[others], values[others]
        overlap = _overlaps(boxes[index][None], boxes[rest], offset)[0]
        if method == 2:
            values = values * torch.exp(-(overlap**2) / sigma)
        else:
            weight = torch.zeros_like(overlap) if method == 0 else 1 - overlap
            values = torch.where(overlap >= iou_threshold, values * weight, values)
        kept = values >= min_score
        rest, values = rest[kept], values[kept]
    if not chosen:
        return rest
    indices = torch.stack(chosen)
    dets[: len(indices)] = torch.cat([boxes[indices], torch.stack(lowered)[:, None]], dim=1)
    return indices


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return for each box that survives suppression its index and those of the boxes it suppresses, by score.

    ``dets`` is (N, 5), boxes with scores; groups are in the order of their first box's score.
    """
    order = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(order):
        first, rest = order[0], order[1:]
        matched = _overlaps(dets[first, None, :4], dets[rest, :4], 0)[0] >= iou_threshold
        groups.append([int(first), *rest[matched].tolist()])
        order = rest[~matched]
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write the overlaps of boxes (N, 4) and (M, 4) into ``ious``, (N, M), or (N,) of pairs if ``aligned``.

    The intersection is divided by the union (``mode`` 0) or by the first box's area (1).
    """
    first, second = (bboxes1, bboxes2) if aligned else (bboxes1[:, None], bboxes2[None])
    ious.copy_(_ratio(first, second, offset, over_first=bool(mode)))


def _overlaps(first: Tensor, second: Tensor, offset: int) -> Tensor:
    return _ratio(first[:, None], second[None], offset)


def _ratio(first: Tensor, second: Tensor, offset: int, over_first: bool = False) -> Tensor:
    corner, end = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (end - corner + offset).clamp(min=0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + offset).prod(dim=-1) for boxes in (first, second)]
    return shared / (areas[0] if over_first else areas[0] + areas[1] - shared)
