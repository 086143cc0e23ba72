"""mmseg's UPerHead with half the multiplications, under its own parameter names.

Two convolutions of UPerNet (Xiao et al., arXiv 1807.10221) read upsampled maps: the fusion of the pyramid and the one
behind the pooled maps. Both are computed as :mod:`~mixtransfer.transfer.fused_upsampling` describes; the fusion alone
is half of the training step of a UPerNet with Swin-T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import UPerHead as MMSegUPerHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from mixtransfer.registry import MODELS
from mixtransfer.transfer.fused_upsampling import PyramidConv2d

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
            if _starts_with_plain_conv(module):
                module.conv = PyramidConv2d(module.conv, self.align_corners)

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the fused pooled maps (B, channels, H, W) of the last of ``inputs``."""
        if not _takes_levels(self.bottleneck):
            return super().psp_forward(inputs)
        x = inputs[-1]
        return self.bottleneck([x, *(pool(x) for pool in self.psp_modules)])

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        if not _takes_levels(self.fpn_bottleneck):
            return super()._forward_feature(inputs)
        maps = self._transform_inputs(inputs)
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.psp_forward(maps))
        for i in reversed(range(1, len(levels))):
            above = resize(levels[i], levels[i - 1].shape[2:], mode="bilinear", align_corners=self.align_corners)
            levels[i - 1] = levels[i - 1] + above
        fused = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        return self.fpn_bottleneck([*fused, levels[-1]])


def _starts_with_plain_conv(module: nn.Module) -> bool:
    return (
        isinstance(module, ConvModule)
        and module.order[0] == "conv"
        and not (module.with_explicit_padding or module.with_spectral_norm)
        and PyramidConv2d.can_replace(module.conv)
    )


def _takes_levels(module: nn.Module) -> bool:
    """Say whether a fusion accepts levels; with mmcv's convolution that folds the norm in (evaluation), it does not."""
    conv = getattr(module, "conv", None)
    return isinstance(conv, PyramidConv2d) and module.efficient_conv_bn_eval_forward is None
