"""Names of MixMIM's entries in mmpretrain, and mmpretrain's network."""

from __future__ import annotations

from torch import nn

from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.formats.swin import REORDERS
from mixtransfer.backbones.mixmim import PATCH, Spec, published_windows
from mixtransfer.backbones.swin import DERIVED

__all__ = ["FORMATS"]


def _mmpretrain(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from mmpretrain.models import ImageClassifier

    if classes is None:
        return None
    arch = dict(embed_dims=spec.channels, depths=spec.depths, num_heads=spec.heads)
    windows = published_windows([spec.img_size // (PATCH * 2**i) for i in range(len(spec.depths))])
    backbone = dict(type="MixMIMTransformer", arch=arch, img_size=spec.img_size, in_channels=channels)
    width = spec.channels * 2 ** (len(spec.depths) - 1)
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=width) if classes else None
    return ImageClassifier(backbone | dict(window_size=windows), head=head)


FORMATS = {
    "mmpretrain": KeyMap(
        renames=(
            ("patch_embed.projection.{rest}", "patch_embed.proj.{rest}"),
            ("layers.{i}.blocks.{j}.ln1.{rest}", "layers.{i}.blocks.{j}.norm1.{rest}"),
            ("layers.{i}.blocks.{j}.ln2.{rest}", "layers.{i}.blocks.{j}.norm2.{rest}"),
            ("layers.{i}.blocks.{j}.ffn.layers.0.0.{rest}", "layers.{i}.blocks.{j}.mlp.fc1.{rest}"),
            ("layers.{i}.blocks.{j}.ffn.layers.1.{rest}", "layers.{i}.blocks.{j}.mlp.fc2.{rest}"),
            ("head.fc.{rest}", "head.{rest}"),
        ),
        derived=DERIVED,
        reorders=REORDERS,
        network=_mmpretrain,
    ),
}
