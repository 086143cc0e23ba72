"""SegFormer's all-MLP head as SegFormer and FAN publish it: a biased linear layer a level, without norm or activation.

Papers: Xie et al., "SegFormer", NeurIPS 2021, arXiv 2105.15203; Zhou et al., "Understanding the Robustness in Vision
Transformers", ICML 2022, arXiv 2204.12451. Code: NVlabs/FAN, segmentation/mmseg/models/decode_heads/segformer_head.py
(NVIDIA Source Code License-NC; read, not copied). mmseg's own ``SegformerHead`` is another network: a convolution with
a norm and an activation a level, and levels joined the finest first.

Shapes: B batch, C_i × H_i × W_i the map of level i, E the head's channels, K classes.

Kept from the published code: the order of levels, the coarsest first; the names of entries. Different: the published
head also holds a ``conv_seg`` that no step reads; it is left out, here and when weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from mixtransfer.registry import MODELS
from mixtransfer.transfer.fused_upsampling import Levels, fuse, takes_levels

__all__ = ["SegFormerHead"]


class Projection(nn.Module):
    """A linear layer on the channels of a map, (B, C, H, W) -> (B, E, H, W)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected map."""
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class SegFormerHead(BaseDecodeHead):
    """Segmentation head that joins linear projections of all levels, list of (B, C_i, H_i, W_i) -> (B, K, H_1, W_1).

    Args:
        in_channels: channels C_i of the backbone's maps, the finest first.
        channels: width E of the projections and of their fusion.
        options: further arguments of mmseg's ``BaseDecodeHead``.
    """

    #: Entries of the published class that no step reads.
    unread = ("conv_seg.weight", "conv_seg.bias")

    def __init__(self, in_channels: Sequence[int], channels: int, **options: Any):
        options = {"init_cfg": None, **options, "input_transform": "multiple_select"}
        super().__init__(in_channels, channels, **options)
        for level, width in enumerate(in_channels, 1):
            self.add_module(f"linear_c{level}", Projection(width, channels))
        self.linear_fuse = ConvModule(
            len(in_channels) * channels, channels, 1, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg
        )
        fuse(self.linear_fuse, self.align_corners)
        self.linear_pred = nn.Conv2d(channels, self.out_channels, 1)
        del self.conv_seg
        self.register_load_state_dict_pre_hook(drop_unread)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits at the finest level's size."""
        maps = self._transform_inputs(inputs)
        size = maps[0].shape[2:]
        levels = [getattr(self, f"linear_c{level}")(x) for level, x in enumerate(maps, 1)]
        if takes_levels(self.linear_fuse):
            return self.cls_seg(self.linear_fuse(Levels(levels[::-1], size)))
        levels = [resize(x, size=size, mode="bilinear", align_corners=self.align_corners) for x in reversed(levels)]
        return self.cls_seg(self.linear_fuse(torch.cat(levels, dim=1)))

    def cls_seg(self, feat: Tensor) -> Tensor:
        """Return the logits (B, K, H, W) of the fused map (B, E, H, W)."""
        return self.linear_pred(feat if self.dropout is None else self.dropout(feat))


def drop_unread(head: SegFormerHead, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Leave out the published entries that no step reads."""
    for name in head.unread:
        state.pop(prefix + name, None)
