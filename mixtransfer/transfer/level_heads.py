"""mmseg's heads that convolve upsampled maps, computed at the resolution of the levels, under their own entries.

PSPHead (arXiv 1612.01105) convolves its pooled maps beside the map itself, FPNHead (arXiv 1901.02446, Semantic FPN)
upsamples between its convolutions, SegformerHead (arXiv 2105.15203) fuses four levels by a 1 × 1 convolution: each is
computed as :mod:`~mixtransfer.transfer.fused_upsampling` describes. Checkpoints interchange with mmseg's both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmseg.models.decode_heads import FPNHead as MMSegFPNHead
from mmseg.models.decode_heads import PSPHead as MMSegPSPHead
from mmseg.models.decode_heads import SegformerHead
from mmseg.models.utils import Upsample, resize
from torch import Tensor, nn

from mixtransfer.registry import MODELS
from mixtransfer.transfer.fused_upsampling import Levels, fuse, takes_levels

__all__ = ["FPNHead", "LevelwiseSegformerHead", "PSPHead"]


@MODELS.register_module()
class PSPHead(MMSegPSPHead):
    """A drop-in for ``mmseg.PSPHead``: the same function of the same parameters, to rounding.

    Args:
        options: arguments of ``mmseg.PSPHead``.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        fuse(self.bottleneck, self.align_corners)

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        if not takes_levels(self.bottleneck):
            return super()._forward_feature(inputs)
        x = self._transform_inputs(inputs)
        return self.bottleneck([x, *(pool(x) for pool in self.psp_modules)])


@MODELS.register_module()
class FPNHead(MMSegFPNHead):
    """A drop-in for ``mmseg.FPNHead``: the same function of the same parameters, to rounding.

    A map that has the size of the answer already is not resampled.

    Args:
        options: arguments of ``mmseg.FPNHead``.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        for head in self.scale_heads:
            for before, module in zip(list(head)[:-1], list(head)[1:], strict=True):
                if isinstance(before, Upsample):
                    fuse(module, self.align_corners)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits at the finest level's size."""
        maps = self._transform_inputs(inputs)
        out = self.scale_heads[0](maps[0])
        for head, x in zip(list(self.scale_heads)[1:], maps[1:], strict=True):
            out = out + self._resized(self._scaled(head, x), out.shape[2:])
        return self.cls_seg(out)

    def _scaled(self, head: nn.Sequential, x: Tensor) -> Tensor:
        """Return what the layers of a level make of its map; convolutions upsample what they read."""
        size = x.shape[2:]
        for layer in head:
            if isinstance(layer, Upsample):
                size = tuple(int(side * layer.scale_factor) for side in x.shape[2:])
            elif takes_levels(layer):
                x = layer(Levels([x], size))
            else:
                x = layer(self._resized(x, size))
        return self._resized(x, size)

    def _resized(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if tuple(x.shape[2:]) == tuple(size):
            return x
        return resize(x, size=size, mode="bilinear", align_corners=self.align_corners)


@MODELS.register_module()
class LevelwiseSegformerHead(SegformerHead):
    """A drop-in for ``mmseg.SegformerHead``: the same function of the same parameters, to rounding.

    ``mixtransfer.SegFormerHead`` is another network, the one that SegFormer and FAN publish.

    Args:
        options: arguments of ``mmseg.SegformerHead``.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        if self.interpolate_mode == "bilinear":
            fuse(self.fusion_conv, self.align_corners)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits at the finest level's size."""
        if not takes_levels(self.fusion_conv):
            return super().forward(inputs)
        maps = self._transform_inputs(inputs)
        return self.cls_seg(self.fusion_conv([conv(x) for conv, x in zip(self.convs, maps, strict=True)]))
