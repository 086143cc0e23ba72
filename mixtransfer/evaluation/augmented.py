"""Test-time augmentation: a model sees an image at several sizes and mirrored, and its answers become one.

Segmentors average the probabilities of all views at the image's own size, as mmseg 0.x and 1.x do. Detectors pool the
boxes of all views and suppress doubles, as mmdet 3's DetTTAModel. Masks of the boxes that are left are predicted in
every view and averaged before they are pasted, as mmdet 2 did (``aug_test_mask``), which mmdet 3 leaves out; heads that
predict masks without regions keep each instance's mask from the view that found it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_flip
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from mixtransfer.registry import MODELS, import_quietly

__all__ = ["DetTTAModel", "SegTTAModel"]

ROI_HEADS: Any = import_quietly("mmdet.models.roi_heads")
#: Direction of a flip -> the dimensions of a map (…, H, W) that it turns around.
TURNED = {"horizontal": (-1,), "vertical": (-2,), "diagonal": (-2, -1)}


@MODELS.register_module()
class SegTTAModel(BaseTTAModel):
    """The mean of a segmentor's probabilities over views, summed view by view.

    mmseg's own keeps the answers of all views at once, gigabytes where images and classes are many, and takes the
    sigmoid of a single class twice.
    """

    def test_step(self, data: Mapping[str, Sequence]) -> list:
        """Return the first view's samples with ``pred_sem_seg`` and, as ``seg_logits``, the mean probabilities."""
        samples, total = [], []
        views = _views(data)
        for view in views:
            found = self.module.test_step(view)
            total = _summed(total, [_probabilities(sample.seg_logits.data) for sample in found])
            samples = samples or found
        for sample, share in zip(samples, total, strict=True):
            share /= len(views)
            if len(share) == 1:
                labels = (share > _plain(self.module).decode_head.threshold).to(share)
            else:
                labels = share.argmax(0, keepdim=True)
            sample.set_data({"seg_logits": PixelData(data=share), "pred_sem_seg": PixelData(data=labels)})
        return samples

    def merge_preds(self, data_samples_list: Any) -> Any:
        """Not in use: :meth:`test_step` merges."""
        raise NotImplementedError


@MODELS.register_module()
class DetTTAModel(BaseTTAModel):
    """A detector's instances over views.

    Args:
        nms: settings of the suppression among the boxes of all views, as in a model's ``test_cfg``.
        max_per_img: instances that are kept of an image.
        settings: of mmengine's base class.
    """

    def __init__(self, nms: Mapping, max_per_img: int, **settings: Any):
        super().__init__(**settings)
        self.nms, self.max_per_img = dict(nms), max_per_img

    def test_step(self, data: Mapping[str, Sequence]) -> list[DetDataSample]:
        """Return the first view's samples with the merged ``pred_instances``."""
        detector = _plain(self.module)
        head = getattr(detector, "roi_head", None)
        if type(head) in (ROI_HEADS.StandardRoIHead, ROI_HEADS.CascadeRoIHead) and head.with_mask:
            return self._with_region_masks(detector, head, _views(data))
        return self.merge_preds(list(zip(*map(self.module.test_step, _views(data)), strict=True)))

    def merge_preds(self, data_samples_list: Sequence[Sequence[DetDataSample]]) -> list[DetDataSample]:
        """Return, of each image's views, the first sample with the instances that are left of all."""
        return [self._merged(views) for views in data_samples_list]

    def _merged(self, views: Sequence[DetDataSample]) -> DetDataSample:
        found = InstanceData.cat([_upright(view) for view in views])
        if len(found):
            boxes, kept = import_quietly("mmcv.ops").batched_nms(found.bboxes, found.scores, found.labels, self.nms)
            found = found[kept]
            found.scores = boxes[:, -1]
        views[0].pred_instances = found[: self.max_per_img]
        return views[0]

    def _with_region_masks(self, detector: Any, head: Any, views: Sequence[Mapping]) -> list[DetDataSample]:
        seen, found = [], []
        for view in views:
            batch = detector.data_preprocessor(view, False)
            samples = batch["data_samples"]
            maps, metas = detector.extract_feat(batch["inputs"]), [sample.metainfo for sample in samples]
            proposals = detector.rpn_head.predict(maps, samples, rescale=False)
            boxes = head.predict_bbox(maps, metas, proposals, head.test_cfg, rescale=True)
            found.append(detector.add_pred_to_datasample(samples, boxes))
            seen.append((maps, metas))
        merged = self.merge_preds(list(zip(*found, strict=True)))
        results = [sample.pred_instances for sample in merged]
        counts = [len(result) for result in results]
        total: list[Tensor] = []
        for maps, metas in seen if sum(counts) else ():
            regions = bbox2roi([_in_view(r.bboxes, meta) for r, meta in zip(results, metas, strict=True)])
            shares = [
                _turned(share, meta)
                for share, meta in zip(_mask_shares(head, maps, regions).split(counts), metas, strict=True)
            ]
            total = _summed(total, shares)
        # The boxes are in the image's own pixels already.
        metas = [{**sample.metainfo, "scale_factor": (1.0, 1.0)} for sample in merged]
        mask_head = head.mask_head[-1] if isinstance(head.mask_head, nn.ModuleList) else head.mask_head
        means = [share / len(views) for share in total] or [result.bboxes for result in results]
        results = mask_head.predict_by_feat(means, results, metas, head.test_cfg, rescale=True, activate_map=True)
        return detector.add_pred_to_datasample(merged, results)


def _views(data: Mapping[str, Sequence]) -> list[dict]:
    """Return the batches that a batch of augmented samples holds, one a view."""
    return [{key: value[number] for key, value in data.items()} for number in range(len(data["inputs"]))]


def _summed(total: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums, image by image; the first of them take the memory of what they are added to."""
    return [a.add_(b) for a, b in zip(total, more, strict=True)] if total else list(more)


def _plain(module: Any) -> Any:
    """Return a model without the wrapper of distributed processes."""
    return module.module if is_model_wrapper(module) else module


def _probabilities(logits: Tensor) -> Tensor:
    """Return (C, H, W) probabilities; mmseg has taken the sigmoid of a single class already."""
    return logits.softmax(0) if len(logits) > 1 else logits


def _upright(view: DetDataSample) -> InstanceData:
    """Return a view's instances in the pixels of the image as it is."""
    found, meta = view.pred_instances, view.metainfo
    if meta.get("flip"):
        found = found[:]
        found.bboxes = bbox_flip(found.bboxes, meta["ori_shape"], meta["flip_direction"])
        if "masks" in found:
            found.masks = _turned(torch.as_tensor(found.masks), meta)
    return found


def _turned(maps: Tensor, meta: Mapping) -> Tensor:
    """Return maps (…, H, W) of a view, or of regions in it, turned as the image is."""
    return maps.flip(TURNED[meta["flip_direction"]]) if meta.get("flip") else maps


def _in_view(boxes: Tensor, meta: Mapping) -> Tensor:
    """Return where boxes (N, 4) of an image lie in a view of it."""
    boxes = boxes * boxes.new_tensor(meta["scale_factor"]).repeat(2)
    return bbox_flip(boxes, meta["img_shape"], meta["flip_direction"]) if meta.get("flip") else boxes


def _mask_shares(head: Any, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
    """Return the mask probabilities (N, C, h, w) of regions (N, 5), the mean of a cascade's stages."""
    if isinstance(head, ROI_HEADS.CascadeRoIHead):
        stages = [head._mask_forward(stage, maps, regions) for stage in range(head.num_stages)]
    else:
        stages = [head._mask_forward(maps, regions)]
    return torch.stack([stage["mask_preds"].sigmoid() for stage in stages]).mean(0)
