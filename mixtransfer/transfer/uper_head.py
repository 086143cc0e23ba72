"""mmseg's UPerHead with half the multiplications, under its own parameter names.

Two convolutions of UPerNet (Xiao et al., arXiv 1807.10221) read upsampled maps: the fusion of the pyramid and the one
behind the pooled maps. Both are computed as :mod:`~mixtransfer.transfer.fused_upsampling` describes; the fusion alone
is half of the training step of a UPerNet with Swin-T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmseg.models.decode_heads import UPerHead as MMSegUPerHead
from mmseg.models.utils import resize
from torch import Tensor

from mixtransfer.registry import MODELS
from mixtransfer.transfer.fused_upsampling import fuse, takes_levels

__all__ = ["UPerHead"]


@MODELS.register_module()
class UPerHead(MMSegUPerHead):
    """A drop-in for ``mmseg.UPerHead``: the same function of the same parameters, to rounding.

    Convolutions of another kind (``conv_cfg``) run as mmseg runs them.

    Args:
        options: arguments of ``mmseg.UPerHead``.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        for module in (self.bottleneck, self.fpn_bottleneck):
            fuse(module, self.align_corners)

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the fused pooled maps (B, channels, H, W) of the last of ``inputs``."""
        if not takes_levels(self.bottleneck):
            return super().psp_forward(inputs)
        x = inputs[-1]
        return self.bottleneck([x, *(pool(x) for pool in self.psp_modules)])

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        if not takes_levels(self.fpn_bottleneck):
            return super()._forward_feature(inputs)
        maps = self._transform_inputs(inputs)
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.psp_forward(maps))
        for i in reversed(range(1, len(levels))):
            above = resize(levels[i], levels[i - 1].shape[2:], mode="bilinear", align_corners=self.align_corners)
            levels[i - 1] = levels[i - 1] + above
        fused = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        return self.fpn_bottleneck([*fused, levels[-1]])
