"""ViTDet's neck: a pyramid made of the last map of a network of one stride.

Paper: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022, arXiv 2203.16527,
section 3 and appendix. Code: facebookresearch/detectron2, modeling/backbone/vit.py (Apache-2.0). mmdet has it among its
projects only, which no release installs.

Shapes: B batch, C channels of the backbone, H × W its map at stride 16, D channels of all outputs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.registry import MODELS

__all__ = ["LayerNorm2d", "SimpleFeaturePyramid"]


@MODELS.register_module()
class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W), as ``norm_cfg=dict(type="mixtransfer.LayerNorm2d")``.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized map."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class SimpleFeaturePyramid(nn.Module):
    """Maps at four times, twice, once and half the resolution of the one map, and coarser ones by subsampling.

    Args:
        in_channels: channels (C,) of the backbone's one output.
        out_channels: D.
        num_outs: number of outputs, at least 4; strides 4, 8, 16, 32, 64, … of a map at stride 16.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, num_outs: int = 5):
        super().__init__()
        (width,), self.num_outs = in_channels, num_outs
        half, quarter = width // 2, width // 4
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    OrderedDict(
                        up1=nn.ConvTranspose2d(width, half, 2, 2),
                        norm=LayerNorm2d(half),
                        act=nn.GELU(),
                        up2=nn.ConvTranspose2d(half, quarter, 2, 2),
                    )
                ),
                nn.ConvTranspose2d(width, half, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2, ceil_mode=True),
            ]
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    conv1=nn.Conv2d(channels, out_channels, 1, bias=False),
                    norm1=LayerNorm2d(out_channels),
                    conv2=nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                    norm2=LayerNorm2d(out_channels),
                )
            )
            for channels in (quarter, half, width, width)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the pyramid of the last of ``maps`` (B, C, H, W), each output (B, D, h, w)."""
        levels = [output(scale(maps[-1])) for scale, output in zip(self.scales, self.outputs, strict=True)]
        while len(levels) < self.num_outs:
            levels.append(F.max_pool2d(levels[-1], 1, 2))
        return tuple(levels)
