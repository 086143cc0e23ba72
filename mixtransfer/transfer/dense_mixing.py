"""Mixing of dense ground truth: label maps, instance masks and boxes, for OpenMMLab data samples.

Nothing here writes into its arguments. Shapes: B batch, H × W padded image, n instances. An image's *valid* area is
its upper left ``img_shape``; the rest of H × W is padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import size_of
from mixtransfer.mixing.regions import Region

__all__ = ["GroundTruth", "class_map", "draw_pixels", "fit", "ground_truth", "mix_sample", "saved_sample"]

INSTANCES, IGNORED, LABEL_MAP = "gt_instances", "ignored_instances", "gt_sem_seg"


@dataclass(frozen=True)
class GroundTruth:
    """The dense ground truth of one image, as plain tensors by the names they have in the data sample.

    Attributes:
        valid: height and width without padding.
        maps: field -> name -> (c, h, w), where h × w is the padded or the valid size.
        instances: field -> name -> a value for each instance; ``bboxes`` (n, 4) among them.
        masks: field -> (n, h, w) bool on CPU, for the fields whose instances have masks.
    """

    valid: tuple[int, int]
    maps: dict[str, dict[str, Tensor]]
    instances: dict[str, dict[str, Any]]
    masks: dict[str, Tensor]


def ground_truth(sample: BaseDataElement, size: tuple[int, int]) -> GroundTruth:
    """Collect the ground truth of a data sample whose image was padded to ``size``.

    Raises:
        UserError: a label map of another size than its image.
    """
    valid = tuple(sample.metainfo.get("img_shape", size)[:2])
    truth = GroundTruth(valid, {}, {}, {})
    for key, element in sample.items():
        if isinstance(element, PixelData) and key.startswith("gt_"):
            truth.maps[key] = dict(element.items())
            if tuple(element.shape) not in (tuple(size), valid):
                raise UserError(
                    f"{sample.metainfo.get('img_path', 'a sample')}: {key} is {element.shape}, its image {valid}; "
                    "TokenMixHook pastes maps pixel by pixel, so load them at the image's size"
                )
        elif key in (INSTANCES, IGNORED) and "bboxes" in element:
            fields = dict(element.items())
            if "masks" in fields:
                bitmaps = np.asarray(fields.pop("masks").to_ndarray())
                truth.masks[key] = torch.from_numpy(bitmaps.astype(bool, copy=False))
            fields["bboxes"] = getattr(fields["bboxes"], "tensor", fields["bboxes"])
            truth.instances[key] = fields
    return truth


def saved_sample(saved: Any) -> tuple[Tensor, GroundTruth]:
    """Return an image (3, H, W) and its ground truth from what a checkpoint has of them.

    Raises:
        UserError: it is not what the hook writes.
    """
    if not _is_sample(saved):
        raise UserError("the checkpoint's token_mix_hook is no image with its ground truth; it was damaged or forged")
    return saved["image"], GroundTruth(**saved["truth"])


def _is_sample(saved: Any) -> bool:
    def dicts(*values: Any) -> bool:
        return all(isinstance(value, dict) for value in values)

    truth = saved.get("truth") if dicts(saved) else None
    if not dicts(truth) or truth.keys() != GroundTruth.__dataclass_fields__.keys():
        return False
    image, (valid, maps, instances, masks) = (
        saved.get("image"),
        (truth[key] for key in GroundTruth.__dataclass_fields__),
    )
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point() or not image.isfinite().all():
        return False
    if not isinstance(valid, tuple) or len(valid) != 2 or any(type(side) is not int for side in valid):
        return False
    size = tuple(image.shape[1:])
    if not all(0 < side <= most for side, most in zip(valid, size, strict=True)):
        return False
    if not dicts(maps, instances, masks, *maps.values(), *instances.values()):
        return False
    counts = {key: _length(fields.get("bboxes")) for key, fields in instances.items()}
    return (
        all(_is_map(value, size, valid) for fields in maps.values() for value in fields.values())
        and all(_length(value) == counts[key] for key, fields in instances.items() for value in fields.values())
        and all(_is_map(mask, size, valid) and len(mask) == counts.get(key) for key, mask in masks.items())
    )


def _is_map(value: Any, size: tuple[int, int], valid: tuple[int, int]) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and tuple(value.shape[1:]) in (size, valid)


def _length(value: Any) -> int | None:
    return len(value) if (isinstance(value, Tensor) and value.ndim) or isinstance(value, list) else None


def class_map(truth: GroundTruth, size: tuple[int, int], num_classes: int, ignore_index: int) -> Tensor:
    """Return the class of every pixel, (H, W) int64, −1 for ignored pixels, crowds and padding.

    Instances are painted the smaller over the larger (as rectangles if they have no masks) on a background, which is
    class ``num_classes`` − 1. Without instances it is the label map.

    Raises:
        UserError: the sample has neither instances nor a label map, or a label beyond the classes.
    """
    if INSTANCES in truth.instances:
        painted = _paint(truth, size, num_classes - 1)
    elif LABEL_MAP in truth.maps:
        (labels,) = (value[0] for value in truth.maps[LABEL_MAP].values())
        painted = fit(torch.where(labels == ignore_index, -1, labels.long()), size, -1)
    else:
        raise UserError(f"TokenMixHook: a training sample has neither {INSTANCES} nor {LABEL_MAP}")
    height, width = truth.valid
    return fit(painted[:height, :width], size, -1)


def draw_pixels(
    region: Region, cell_size: int, valid: Sequence[tuple[int, int]], size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Draw a region for every image and return its pixels, (B, H, W) bool on CPU.

    Args:
        region: one whose ``hard_mask`` is True, and that needs no evidence.
        cell_size: side of the cells of the grid that the region is drawn on, in pixels.
        valid: height and width that image and partner have in common; regions stay inside.
        size: H and W.
        generator: source of the draws.
    """
    pixels = torch.zeros(len(valid), *size, dtype=torch.bool)
    for own, (height, width) in zip(pixels, valid, strict=True):
        grid = math.ceil(height / cell_size), math.ceil(width / cell_size)
        whole = grid[0] * cell_size, grid[1] * cell_size
        draw = region.draw((1, 3, *whole), grid, generator).resolve({})
        own[:height, :width] = draw.pixels(whole)[0, :height, :width]
    return pixels


def mix_sample(
    sample: BaseDataElement,
    own: GroundTruth,
    partner: GroundTruth,
    pixels: Tensor,
    *,
    min_share: float,
    min_pixels: int,
) -> BaseDataElement:
    """Return a copy of ``sample`` whose ground truth is the partner's in the region and its own elsewhere.

    Instances that the region cuts keep the rest of their mask and get its box; without masks the box counts as a filled
    rectangle. The partner's instances follow the image's own.

    Args:
        sample: the image's data sample.
        own: the ground truth of ``sample``.
        partner: the ground truth that is pasted.
        pixels: (H, W) bool on CPU, the region.
        min_share: a cut instance with a smaller share of its pixels left is dropped; ignored ones stay ignored.
        min_pixels: a cut instance with fewer pixels left is dropped.
    """
    mixed = sample.new()
    for key, maps in own.maps.items():
        pasted = {name: _paste(value, partner.maps[key][name], pixels) for name, value in maps.items()}
        setattr(mixed, key, getattr(sample, key).new(**pasted))
    for key in own.instances:
        limits = (min_share, min_pixels) if key == INSTANCES else (0.0, 0)
        parts = [_clip(own, key, ~pixels, limits), _clip(partner, key, pixels, limits)]
        element = getattr(sample, key)
        setattr(mixed, key, _join(element, parts, own.masks.get(key)))
    return mixed


def fit(x: Tensor, size: tuple[int, int], value: float = 0) -> Tensor:
    """Crop or pad the last two dimensions to ``size``, at the bottom and on the right; ``x`` itself if they fit."""
    x = x[..., : size[0], : size[1]]
    if size_of(x) == tuple(size):
        return x
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]), value=value)


def _paint(truth: GroundTruth, size: tuple[int, int], background: int) -> Tensor:
    canvas = np.full(size, background, dtype=np.int64)
    ignored = [(mask, -1) for mask in _bitmaps(truth, IGNORED, size)]
    labels = truth.instances[INSTANCES]["labels"].tolist()
    if max(labels, default=0) >= background:
        raise UserError(
            f"instance label {max(labels)}, but token_classifier.num_classes={background + 1} has room for things "
            f"0 to {background - 1} and the background; set it to the number of things plus one"
        )
    things = sorted(zip(_bitmaps(truth, INSTANCES, size), labels, strict=True), key=lambda x: -np.count_nonzero(x[0]))
    for mask, label in [*ignored, *things]:
        mask = mask[: size[0], : size[1]]
        np.copyto(canvas[: mask.shape[0], : mask.shape[1]], label, where=mask)
    return torch.from_numpy(canvas)


def _bitmaps(truth: GroundTruth, key: str, size: tuple[int, int]) -> list[np.ndarray]:
    if key in truth.masks:
        return list(truth.masks[key].numpy())
    bitmaps = []
    for box in truth.instances.get(key, {}).get("bboxes", torch.empty(0, 4)).tolist():
        top, bottom, left, right = _window(box, size)
        bitmaps.append(np.zeros(size, dtype=bool))
        bitmaps[-1][top:bottom, left:right] = True
    return bitmaps


def _window(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the pixels (top, bottom, left, right) that a box (x1, y1, x2, y2) touches."""
    top, left = max(math.floor(box[1]), 0), max(math.floor(box[0]), 0)
    return top, min(math.ceil(box[3]), size[0]), left, min(math.ceil(box[2]), size[1])


def _paste(own: Tensor, partner: Tensor, pixels: Tensor) -> Tensor:
    size = size_of(own)
    return torch.where(fit(pixels, size).to(own.device), fit(partner, size).to(own), own)


def _clip(
    truth: GroundTruth, key: str, keep: Tensor, limits: tuple[float, int]
) -> tuple[InstanceData, list[np.ndarray]]:
    """Return the instances (with new boxes, without masks) that have enough left inside ``keep``, and their masks."""
    fields, keep = truth.instances[key], keep.numpy()
    masks = truth.masks[key].numpy() if key in truth.masks else None
    # A partner from the batch before may be larger than the image that it is pasted into, and is cut off there.
    size = np.maximum(truth.valid, keep.shape).tolist()
    kept, boxes, clipped = [], [], []
    for index, box in enumerate(fields["bboxes"].tolist()):
        if masks is None:
            top, bottom, left, right = _window(box, size)
            rest = keep[top:bottom, left:right]
            whole = (bottom - top) * (right - left)
        else:
            top = left = 0
            mask = masks[index]
            rest = mask[: keep.shape[0], : keep.shape[1]] & keep[: mask.shape[0], : mask.shape[1]]
            whole = np.count_nonzero(mask)
        count = np.count_nonzero(rest)
        if not count or (count < whole and (count < limits[1] or count < limits[0] * whole)):
            continue
        if count < whole:
            tight = _tight_box(rest, top, left)
            box = tight if masks is not None else _intersect(box, tight)
        kept.append(index)
        boxes.append(box)
        clipped.append(rest)
    instances = InstanceData(**fields)[torch.tensor(kept, dtype=torch.long)]
    instances.bboxes = instances.bboxes.new_tensor(boxes).reshape(-1, 4)
    return instances, clipped


def _tight_box(mask: np.ndarray, top: int, left: int) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1


def _intersect(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, float]:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _join(
    like: InstanceData, parts: list[tuple[InstanceData, list[np.ndarray]]], own_masks: Tensor | None
) -> InstanceData:
    device = getattr(like.bboxes, "tensor", like.bboxes).device
    joined = InstanceData.cat([part.to(device) for part, _ in parts])
    if hasattr(like.bboxes, "tensor"):
        joined.bboxes = type(like.bboxes)(joined.bboxes)
    if own_masks is not None:
        # mmdet takes seconds to import and is not needed to mix label maps; where there are masks, it is loaded.
        from mmdet.structures.mask import BitmapMasks

        size = size_of(own_masks)
        bitmaps = [fit(torch.from_numpy(mask), size).numpy() for _, masks in parts for mask in masks]
        joined.masks = BitmapMasks([mask.view(np.uint8) for mask in bitmaps], *size)
    return joined
