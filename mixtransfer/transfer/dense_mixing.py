"""Mixing of dense ground truth: label maps, instance masks and boxes, for OpenMMLab data samples.

Nothing here writes into its arguments. Ground truth is worked on by the host, where the data loader left it; label maps
are pasted where they lie. Shapes: B batch, H × W padded image, n instances. An image's *valid* area is its upper left
``img_shape``; the rest of H × W is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import size_of
from mixtransfer.mixing.regions import Region
from mixtransfer.transfer.crops import Crop, window

__all__ = [
    "PARTNER",
    "GroundTruth",
    "class_map",
    "classes_of",
    "fit",
    "ground_truth",
    "label_maps",
    "mix_instances",
    "partner_evidence",
    "paste",
    "rescaled",
    "saved_sample",
]

#: Names of the ground truth of its partner that a region may need.
PARTNER = CLASSES, INSTANCE_MASKS = "partner_classes", "partner_instances"
INSTANCES, IGNORED, LABEL_MAP = "gt_instances", "ignored_instances", "gt_sem_seg"
#: What a checkpoint holds of a ground truth.
SAVED = ("valid", "maps", "instances", "masks")
#: field -> name -> a label map.
Maps = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class GroundTruth:
    """The dense ground truth of one image on the host, by the names that it has in the data sample.

    Attributes:
        valid: height and width without padding.
        maps: field -> name -> (c, h, w), where h × w is the padded or the valid size.
        instances: field -> name -> a value for each instance; ``bboxes`` (n, 4) among them.
        masks: field -> (n, h, w), 0 outside, for the fields whose instances have masks.
    """

    valid: tuple[int, int]
    maps: Maps
    instances: dict[str, dict[str, Any]]
    masks: dict[str, Tensor]
    _crops: dict[str, list[Crop]] = field(default_factory=dict, init=False, repr=False)

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint holds, plain values and tensors."""
        masks = {key: masks.bool() for key, masks in self.masks.items()}
        return {name: getattr(self, name) for name in SAVED} | {"masks": masks}

    def crops(self, key: str, size: tuple[int, int]) -> list[Crop]:
        """Return the pixels of the instances of a field; rectangles inside ``size`` where they have no masks."""
        if key in self.masks:
            if key not in self._crops:
                self._crops[key] = [Crop.of(mask) for mask in self.masks[key].numpy()]
            return self._crops[key]
        boxes = self.instances[key]["bboxes"].tolist() if key in self.instances else []
        return [Crop.rectangle(*window(box, size)) for box in boxes]


def ground_truth(sample: BaseDataElement, size: tuple[int, int], loaded: BaseDataElement | None = None) -> GroundTruth:
    """Collect the ground truth of a data sample whose image was padded to ``size``.

    Args:
        sample: the data sample, on any device.
        size: H and W.
        loaded: the sample on the host, as it was before the data preprocessor moved it, if the ground truth is the
            same; without it, what lies on a device is read from there.

    Raises:
        UserError: a label map of another size than its image.
    """
    host = sample.cpu() if loaded is None else loaded
    valid = tuple(sample.metainfo.get("img_shape", size)[:2])
    truth = GroundTruth(valid, {}, {}, {})
    for key, element in sample.items():
        if isinstance(element, PixelData) and key.startswith("gt_"):
            truth.maps[key] = dict(getattr(host, key).items())
            shape = tuple(getattr(host, key).shape)
            if shape not in (tuple(size), valid):
                raise UserError(
                    f"{sample.metainfo.get('img_path', 'a sample')}: {key} is {shape}, its image {valid}; "
                    "TokenMixHook pastes maps pixel by pixel, so load them at the image's size"
                )
        elif key in (INSTANCES, IGNORED) and "bboxes" in element:
            fields = {name: getattr(getattr(host, key), name) for name in element.keys()}
            if "masks" in fields:
                truth.masks[key] = torch.from_numpy(np.asarray(fields.pop("masks").to_ndarray()))
            fields["bboxes"] = getattr(fields["bboxes"], "tensor", fields["bboxes"])
            truth.instances[key] = fields
    return truth


def label_maps(sample: BaseDataElement) -> Maps:
    """Return the label maps of a data sample, where they lie."""
    return {
        key: dict(element.items())
        for key, element in sample.items()
        if isinstance(element, PixelData) and key.startswith("gt_")
    }


def rescaled(image: Tensor, truth: GroundTruth, maps: Maps, scale: float) -> tuple[Tensor, GroundTruth, Maps]:
    """Return an image (3, H, W) with its ground truth resized from its upper left corner, cropped or padded to H × W.

    Args:
        image: the image.
        truth: its ground truth on the host.
        maps: its label maps where they lie.
        scale: the factor. Sides are rounded to whole pixels, from 1.
    """
    size, (height, width) = size_of(image), truth.valid
    new = max(round(height * scale), 1), max(round(width * scale), 1)

    def resize(x: Tensor, **how: Any) -> Tensor:
        whole = F.interpolate(x[None, ..., :height, :width].float(), new, **how)[0]
        return fit(whole, size).to(x.dtype)

    def nearest(fields: Maps) -> Maps:
        return {
            key: {name: resize(value, mode="nearest-exact") for name, value in found.items()}
            for key, found in fields.items()
        }

    valid = min(new[0], size[0]), min(new[1], size[1])
    instances = {}
    for key, fields in truth.instances.items():
        boxes = fields["bboxes"] * fields["bboxes"].new_tensor([new[1] / width, new[0] / height]).repeat(2)
        limits = boxes.new_tensor([valid[1], valid[0]]).repeat(2)
        instances[key] = {**fields, "bboxes": torch.minimum(boxes.clamp(min=0), limits)}
    # Of no instance there is nothing to resize.
    masks = {
        key: resize(mask, mode="nearest-exact") if len(mask) else mask.new_zeros(0, *size)
        for key, mask in truth.masks.items()
    }
    resized = GroundTruth(valid, nearest(truth.maps), instances, masks)
    return resize(image, mode="bilinear", antialias=scale < 1), resized, nearest(maps)


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
    if not dicts(truth) or truth.keys() != set(SAVED):
        return False
    image, (valid, maps, instances, masks) = saved.get("image"), (truth[key] for key in SAVED)
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

    See :func:`classes_of`.
    """
    return torch.from_numpy(classes_of(truth, size, num_classes, ignore_index).astype(np.int64) - 1)


def classes_of(truth: GroundTruth, size: tuple[int, int], num_classes: int, ignore_index: int) -> np.ndarray:
    """Return one more than the class of every pixel, (H, W) of a small unsigned type; 0 where there is none.

    Instances are painted the smaller over the larger (as rectangles if they have no masks) on a background, which is
    class ``num_classes`` − 1. Without instances it is the label map. Ignored pixels, crowds and padding have no class.

    Raises:
        UserError: the sample has neither instances nor a label map, or a label beyond the classes.
    """
    classes = np.zeros(size, dtype=np.min_scalar_type(num_classes))
    own = classes[: truth.valid[0], : truth.valid[1]]
    if INSTANCES in truth.instances:
        _paint(own, truth, size, num_classes - 1)
    elif LABEL_MAP in truth.maps:
        (labels,) = (value[0].numpy() for value in truth.maps[LABEL_MAP].values())
        labels = labels[: own.shape[0], : own.shape[1]]
        known = labels != ignore_index
        if labels.size:
            _check_labels(labels, known, num_classes)
        own = own[: labels.shape[0], : labels.shape[1]]
        np.add(labels, 1, out=own, where=known, casting="unsafe")
    else:
        raise UserError(f"TokenMixHook: a training sample has neither {INSTANCES} nor {LABEL_MAP}")
    return classes


def _check_labels(labels: np.ndarray, known: np.ndarray, num_classes: int) -> None:
    highest, lowest = int(labels.max()), int(labels.min())
    if highest >= num_classes or lowest < -1:
        found = labels[known]
        highest, lowest = (int(found.max()), int(found.min())) if found.size else (0, 0)
    if highest >= num_classes or lowest < -1:
        raise UserError(
            f"label {highest if highest >= num_classes else lowest} in the ground truth, but"
            f" token_classifier.num_classes={num_classes}; make them agree, or mark the pixels as ignored"
        )


def _paint(canvas: np.ndarray, truth: GroundTruth, size: tuple[int, int], background: int) -> None:
    canvas[...] = background + 1
    for crop in truth.crops(IGNORED, size):
        crop.paint(canvas, 0)
    labels = truth.instances[INSTANCES]["labels"].tolist()
    if max(labels, default=0) >= background:
        raise UserError(
            f"instance label {max(labels)}, but token_classifier.num_classes={background + 1} has room for things "
            f"0 to {background - 1} and the background; set it to the number of things plus one"
        )
    things = zip(truth.crops(INSTANCES, size), labels, strict=True)
    for crop, label in sorted(things, key=lambda thing: -thing[0].count):
        crop.paint(canvas, label + 1)


def paste(own: Tensor, partner: Tensor, region: Crop, mask: Tensor | None) -> None:
    """Replace the region of a map (…, H, W) by that of a partner's, which may be smaller or larger.

    Args:
        own: the map, which is written into.
        partner: another one.
        region: what is replaced.
        mask: the region's pixels (h, w) bool on the map's device, or None if they fill its box.
    """
    height, width = size_of(own)
    part = own[..., region.top : min(region.bottom, height), region.left : min(region.right, width)]
    rows, columns = size_of(part)
    comes = partner[..., region.top : region.top + rows, region.left : region.left + columns].to(own)
    comes = fit(comes, (rows, columns))
    part.copy_(comes if mask is None else torch.where(mask[:rows, :columns], comes, part))


def partner_evidence(region: Region, truth: GroundTruth, ignore_index: int) -> dict[str, Tensor]:
    """Return what a region needs of the ground truth of an image, by the names of :data:`PARTNER`, on CPU.

    ``"partner_classes"`` (H, W) int64 is −1 at ignored pixels. ``"partner_instances"`` (n, H, W) bool are masks, boxes
    filled where there are none; crowds are not among them.

    Raises:
        UserError: the sample has no such ground truth.
    """
    found = {}
    if CLASSES in region.needs:
        if LABEL_MAP not in truth.maps:
            raise UserError(f"TokenMixHook: {type(region).__name__} follows label maps; detectors have InstanceRegion")
        (labels,) = (value[0] for value in truth.maps[LABEL_MAP].values())
        found[CLASSES] = torch.where(labels == ignore_index, -1, labels.long())
    if INSTANCE_MASKS in region.needs:
        if INSTANCES not in truth.instances:
            raise UserError(f"TokenMixHook: {type(region).__name__} follows instances; segmentors have ClassRegion")
        crops = truth.crops(INSTANCES, truth.valid)
        masks = np.zeros((len(crops), *truth.valid), dtype=bool)
        for mask, crop in zip(masks, crops, strict=True):
            crop.paint(mask, True)
        found[INSTANCE_MASKS] = torch.from_numpy(masks)
    return found


def mix_instances(
    sample: BaseDataElement,
    own: GroundTruth,
    partner: GroundTruth,
    region: Crop,
    size: tuple[int, int],
    *,
    min_share: float,
    min_pixels: int,
) -> dict[str, InstanceData]:
    """Return a mixed image's instances on the host, by their fields: the partner's in the region, its own elsewhere.

    Instances that the region cuts keep the rest of their mask and get its box; without masks the box counts as a filled
    rectangle. The partner's instances follow the image's own.

    Args:
        sample: the image's data sample, which says how its boxes and masks are kept.
        own: the ground truth of ``sample``.
        partner: the ground truth that is pasted.
        region: the pixels that are pasted.
        size: H and W.
        min_share: a cut instance with a smaller share of its pixels left is dropped; ignored ones stay ignored.
        min_pixels: a cut instance with fewer pixels left is dropped.
    """
    mixed = {}
    for key in own.instances:
        limits = (min_share, min_pixels) if key == INSTANCES else (0.0, 0)
        parts = [
            _clip(own, key, lambda crop: crop.outside(region), size, limits),
            _clip(partner, key, lambda crop: crop.inside(region), size, limits),
        ]
        joined = InstanceData.cat([instances for instances, _ in parts])
        if key in own.masks:
            joined.masks = _bitmaps(getattr(sample, key).masks, [crop for _, crops in parts for crop in crops])
        mixed[key] = joined
    return mixed


def _clip(
    truth: GroundTruth,
    key: str,
    cut: Callable[[Crop], Crop],
    size: tuple[int, int],
    limits: tuple[float, int],
) -> tuple[InstanceData, list[Crop]]:
    """Return the instances that have enough left once they are cut, with new boxes and without masks; their pixels."""
    fields = truth.instances[key]
    # A partner from the batch before may be larger than the image that it is pasted into, and is cut off there.
    height, width = (max(sides) for sides in zip(truth.valid, size, strict=True))
    kept, boxes, crops = [], [], []
    for index, (box, crop) in enumerate(zip(fields["bboxes"].tolist(), truth.crops(key, (height, width)), strict=True)):
        rest = cut(crop)
        if not rest.count:
            continue
        if rest.count < crop.count:
            if rest.count < limits[1] or rest.count < limits[0] * crop.count:
                continue
            tight = rest.left, rest.top, rest.right, rest.bottom
            box = tight if key in truth.masks else _intersect(box, tight)
        kept.append(index)
        boxes.append(box)
        crops.append(rest)
    instances = InstanceData(**fields)[torch.tensor(kept, dtype=torch.long)]
    instances.bboxes = instances.bboxes.new_tensor(boxes).reshape(-1, 4)
    return instances, crops


def _intersect(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, float]:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _bitmaps(like: Any, crops: list[Crop]) -> Any:
    """Return crops as the masks of instances, on the canvas of others."""
    # mmdet takes seconds to import and is not needed to mix label maps; where there are masks, it is loaded.
    from mmdet.structures.mask import BitmapMasks

    masks = BitmapMasks([], like.height, like.width)
    # The constructor would copy them.
    masks.masks = np.zeros((len(crops), like.height, like.width), dtype=np.uint8)
    for bitmap, crop in zip(masks.masks, crops, strict=True):
        part = bitmap[crop.area]
        part[...] = 1 if crop.pixels is None else crop.pixels[: part.shape[0], : part.shape[1]]
    return masks


def fit(x: Tensor, size: tuple[int, int], value: float = 0) -> Tensor:
    """Crop or pad the last two dimensions to ``size``, at the bottom and on the right; ``x`` itself if they fit."""
    x = x[..., : size[0], : size[1]]
    if size_of(x) == tuple(size):
        return x
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]), value=value)
