"""mmseg's segmentor without maps of all classes that it does not need, in its losses and in its tests.

For the losses see :mod:`~mixtransfer.transfer.pixel_loss`. To test an image, mmseg upsamples the head's logits to the
image's size and then resamples them to the original size, also where that is the size they have. Upsampling and the
choice of the best class read all classes of a pixel, which lie far apart in a map of each class: here they lie side by
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from mixtransfer.registry import MODELS
from mixtransfer.transfer.pixel_loss import head_losses

__all__ = ["EncoderDecoder"]


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """A drop-in for ``mmseg.EncoderDecoder``: the same losses, entries and maps, in less time.

    Args:
        options: arguments of ``mmseg.EncoderDecoder``.
    """

    def _decode_head_forward_train(self, inputs: Sequence[Tensor], data_samples: list[SegDataSample]) -> dict:
        return add_prefix(head_losses(self.decode_head, inputs, data_samples, self.train_cfg), "decode")

    def _auxiliary_head_forward_train(self, inputs: Sequence[Tensor], data_samples: list[SegDataSample]) -> dict:
        heads = self.auxiliary_head
        named = {f"aux_{i}": x for i, x in enumerate(heads)} if isinstance(heads, nn.ModuleList) else {"aux": heads}
        losses = {}
        for name, head in named.items():
            losses |= add_prefix(head_losses(head, inputs, data_samples, self.train_cfg), name)
        return losses

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Return the logits (B, K, H, W) of images (B, 3, H, W); on CPU a pixel's classes lie side by side."""
        head = self.decode_head
        steps = ("predict", "predict_by_feat")
        plain = all(getattr(type(head), step, None) is getattr(BaseDecodeHead, step) for step in steps)
        if not plain or inputs.device.type != "cpu":
            return super().encode_decode(inputs, batch_img_metas)
        logits = head(self.extract_feat(inputs)).contiguous(memory_format=torch.channels_last)
        return head.predict_by_feat(logits, batch_img_metas)

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Sequence[SegDataSample]:
        """Put logits (K, H, W) and classes (1, H, W) of the original size into the samples."""
        if data_samples is None or seg_logits.size(1) == 1:
            return super().postprocess_result(seg_logits, data_samples)
        for logits, sample in zip(seg_logits.split(1), data_samples, strict=True):
            found = self._original(logits, sample.metainfo)[0]
            sample.seg_logits = PixelData(data=found)
            sample.pred_sem_seg = PixelData(data=found.argmax(dim=0, keepdim=True))
        return data_samples

    def _original(self, logits: Tensor, about: dict[str, Any]) -> Tensor:
        """Return logits (1, K, H, W) without the padding, turned back and at the original size."""
        height, width = logits.shape[2:]
        left, right, top, bottom = about.get("img_padding_size", about.get("padding_size", (0, 0, 0, 0)))
        logits = logits[:, :, top : height - bottom, left : width - right]
        if about.get("flip"):
            logits = logits.flip(dims=({"horizontal": 3, "vertical": 2}[about["flip_direction"]],))
        size = tuple(about["ori_shape"])
        if logits.shape[2:] == size:
            return logits
        return resize(logits, size=size, mode="bilinear", align_corners=self.align_corners, warning=False)
