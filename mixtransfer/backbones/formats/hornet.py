"""Names of HorNet's entries in mmpretrain, and mmpretrain's network."""

from __future__ import annotations

from torch import nn

from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.hornet import ORDERS, STRIDES, Spec

__all__ = ["FORMATS"]


def _mmpretrain(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from mmpretrain.models import ImageClassifier

    filters = [dict(type="DW", kernel_size=7)] * 4
    for index in (2, 3) if spec.global_filter else ():
        side = spec.img_size // STRIDES[index]
        filters[index] = dict(type="GF", h=side, w=side // 2 + 1)
    arch = dict(base_dim=spec.channels, depths=list(spec.depths), orders=list(ORDERS), dw_cfg=filters)
    backbone = dict(type="HorNet", arch=arch, in_channels=channels)
    if classes is None:
        backbone |= dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
    width = spec.channels * 2 ** (len(spec.depths) - 1)
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=width) if classes else None
    network = ImageClassifier(backbone, head=head)
    for index in range(4) if classes is None else ():
        setattr(network.backbone, f"norm{index}", nn.Identity())
    return network


FORMATS = {
    "mmpretrain": KeyMap(
        renames=(
            ("stages.{i}.{j}.gnconv.projs.{rest}", "stages.{i}.{j}.gnconv.pws.{rest}"),
            ("stages.{i}.{j}.gamma1.weight", "stages.{i}.{j}.gamma1"),
            ("stages.{i}.{j}.gamma2.weight", "stages.{i}.{j}.gamma2"),
            ("norm3.{rest}", "norm.{rest}"),
            ("head.fc.{rest}", "head.{rest}"),
        ),
        absent=(r"norm\d\..+",),
        network=_mmpretrain,
    ),
}
