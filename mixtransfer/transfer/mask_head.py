"""mmdet's mask head with targets that are cut from the masks themselves, not from a copy of a mask a proposal.

mmdet gathers the full-size mask of every positive proposal in float32 (128 proposals on 800 × 1344 pixels: 550 MB an
image) and gives RoIAlign one image a proposal. RoIAlign takes an image's number with every region, so the masks can
stay as they are: region and number name the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import roi_align
from mmdet.models.roi_heads.mask_heads import FCNMaskHead as MMDetFCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.mask import BitmapMasks
from torch import Tensor
from torch.nn.modules.utils import _pair

from mixtransfer.registry import MODELS

__all__ = ["FCNMaskHead", "mask_targets"]


@MODELS.register_module()
class FCNMaskHead(MMDetFCNMaskHead):
    """A drop-in for ``mmdet.FCNMaskHead``: the same targets, losses and entries, without a mask a proposal.

    Args:
        options: arguments of ``mmdet.FCNMaskHead``.
    """

    def get_targets(
        self, sampling_results: list[SamplingResult], batch_gt_instances: list[Any], rcnn_train_cfg: Any
    ) -> Tensor:
        """Return the targets (P, h, w) of all positive proposals, 0 or 1; polygons are cut as mmdet cuts them."""
        if not all(isinstance(instances.masks, BitmapMasks) for instances in batch_gt_instances):
            return super().get_targets(sampling_results, batch_gt_instances, rcnn_train_cfg)
        soft = rcnn_train_cfg.get("soft_mask_target", False)
        targets = [
            mask_targets(result.pos_priors, result.pos_assigned_gt_inds, instances.masks, rcnn_train_cfg.mask_size)
            for result, instances in zip(sampling_results, batch_gt_instances, strict=True)
        ]
        joined = torch.cat(targets)
        return joined if soft else (joined >= 0.5).to(joined.dtype)


def mask_targets(boxes: Tensor, numbers: Tensor, masks: BitmapMasks, size: int | tuple[int, int]) -> Tensor:
    """Return the share of each mask in the cells of its box, (P, h, w).

    Args:
        boxes: (P, 4), x1, y1, x2, y2 in pixels.
        numbers: (P,) the mask of each box.
        masks: the masks of an image.
        size: h and w, or one number for both.
    """
    if not len(boxes):
        return boxes.new_zeros((0, *_pair(size)))
    limits = boxes.new_tensor([masks.width, masks.height] * 2)
    regions = torch.cat([numbers[:, None].to(boxes.dtype), boxes.clamp(min=0).minimum(limits)], dim=1)
    values = torch.from_numpy(masks.masks).to(boxes.device)[:, None].to(boxes.dtype)
    return roi_align(values, regions, _pair(size), 1.0, 0, "avg", True)[:, 0]
