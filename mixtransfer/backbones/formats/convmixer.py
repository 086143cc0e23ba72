"""Names of ConvMixer's entries in timm and mmpretrain, and their networks; neither has a kernel that channels share."""

from __future__ import annotations

from torch import nn

from mixtransfer.backbones.base import evenly_spaced
from mixtransfer.backbones.convmixer import Spec
from mixtransfer.backbones.formats.key_map import KeyMap

__all__ = ["FORMATS"]


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from timm.models.convmixer import ConvMixer as Network

    if spec.shared:
        return None
    size = (spec.channels, spec.depth, spec.kernel, spec.patch)
    return Network(*size, in_chans=channels, num_classes=classes or 0, act_layer=spec.activation)


def _mmpretrain(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from mmpretrain.models import ImageClassifier

    if spec.shared:
        return None
    size = dict(embed_dims=spec.channels, depth=spec.depth, patch_size=spec.patch, kernel_size=spec.kernel)
    backbone = dict(type="ConvMixer", arch=size, in_channels=channels, act_cfg=dict(type=spec.activation.__name__))
    if classes is None:
        return ImageClassifier({**backbone, "out_indices": evenly_spaced(spec.depth)})
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=spec.channels) if classes else None
    return ImageClassifier(backbone, neck=dict(type="GlobalAveragePooling"), head=head)


FORMATS = {
    "timm": KeyMap(
        renames=(
            ("blocks.{i}.0.fn.0.{rest}", "blocks.{i}.block.0.fn.0.conv.{rest}"),
            ("blocks.{i}.{rest}", "blocks.{i}.block.{rest}"),
        ),
        network=_timm,
    ),
    "mmpretrain": KeyMap(
        renames=(
            ("stages.{i}.0.fn.0.{rest}", "blocks.{i}.block.0.fn.0.conv.{rest}"),
            ("stages.{i}.{rest}", "blocks.{i}.block.{rest}"),
            ("head.fc.{rest}", "head.{rest}"),
        ),
        network=_mmpretrain,
    ),
}
