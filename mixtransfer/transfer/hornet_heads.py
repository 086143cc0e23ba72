"""HorNet's dense heads: gated convolutions in place of the 3 × 3 convolutions that fuse a pyramid.

Paper: Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", NeurIPS 2022,
arXiv 2207.14284 ("HorFPN"). Code: raoyongming/HorNet (MIT). The rest of both heads is mmdet's and mmseg's.

Shapes: B batch, C channels, H_i × W_i the map of level i.

Kept from the published code: order 2, no scale on the gates; the neck replaces every output convolution and has neither
norm nor activation behind it; the segmentation head replaces the last fusion only. Published names of entries are ours.
Different: extra levels by strided convolutions (``add_extra_convs``, as RetinaNet wants them), where the published neck
cannot be built, are mmdet's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmdet.models.necks import FPN
from torch import Tensor

from mixtransfer.backbones.hornet import GlobalLocalFilter, GnConv
from mixtransfer.layers.channels_last import Pointwise
from mixtransfer.layers.depthwise import Depthwise
from mixtransfer.registry import MODELS
from mixtransfer.transfer.uper_head import UPerHead

__all__ = ["GatedFusion", "HorFPN", "HorUPerHead"]

ORDER = 2
#: Size of the map that global filters are learned for.
FILTER_GRID = (32, 32)


class UnscaledFilter(GlobalLocalFilter):
    """The global-local filter without a scale on the gates."""

    scale = 1.0


class GatedFusion(GnConv):
    """Gated convolution of order 2 with a norm and an activation, (B, in, H, W) -> (B, C, H, W).

    Args:
        in_channels: channels of the map.
        channels: channels C of the output.
        kernel_size: side of the depthwise kernel.
        global_filter: filter half of the channels by frequency; the kernel of the other half is then 3 × 3.
        norm_cfg: config of the norm, or None.
        act_cfg: config of the activation, or None.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel_size: int = 7,
        global_filter: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
    ):
        super().__init__(channels, ORDER, None)
        gates = sum(self.parts)
        self.proj_in = Pointwise(in_channels, 2 * channels)
        if global_filter:
            self.dwconv = UnscaledFilter(gates, FILTER_GRID)
        else:
            self.dwconv = Depthwise(gates, kernel_size)
        self.norm_name = None
        if norm_cfg is not None:
            self.norm_name, norm = build_norm_layer(norm_cfg, channels)
            self.add_module(self.norm_name, norm)
        self.activation = None if act_cfg is None else build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Return the fused map."""
        x = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.norm_name is not None:
            x = getattr(self, self.norm_name)(x)
        return x if self.activation is None else self.activation(x)


@MODELS.register_module()
class HorFPN(FPN):
    """mmdet's FPN with a :class:`GatedFusion` for each output convolution.

    Args:
        in_channels: channels of the backbone's maps.
        out_channels: channels of all outputs.
        num_outs: number of outputs.
        kernel_size: side of the depthwise kernels.
        global_filter: filter half of the channels by frequency.
        options: further arguments of ``mmdet.FPN``; its norms and activations stay with the lateral and extra
            convolutions.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        *,
        kernel_size: int = 7,
        global_filter: bool = False,
        **options: Any,
    ):
        super().__init__(list(in_channels), out_channels, num_outs, **options)
        for level in range(len(self.lateral_convs)):
            self.fpn_convs[level] = GatedFusion(
                out_channels, out_channels, kernel_size=kernel_size, global_filter=global_filter
            )


@MODELS.register_module()
class HorUPerHead(UPerHead):
    """Our UPerHead whose levels are fused by a :class:`GatedFusion` with the head's norm and activation.

    Args:
        kernel_size: side of the depthwise kernel; the published heads take 7.
        global_filter: filter half of the channels by frequency.
        options: arguments of ``mmseg.UPerHead``.
    """

    def __init__(self, *, kernel_size: int = 7, global_filter: bool = False, **options: Any):
        super().__init__(**options)
        self.fpn_bottleneck = GatedFusion(
            len(self.in_channels) * self.channels,
            self.channels,
            kernel_size=kernel_size,
            global_filter=global_filter,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )
