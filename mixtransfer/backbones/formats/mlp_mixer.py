"""Names of MLP-Mixer's entries in timm and mmpretrain, and those libraries' networks."""

from __future__ import annotations

from torch import nn

from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.mlp_mixer import NORM_EPS, Spec

__all__ = ["FORMATS"]


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer as Network

    return Network(classes or 0, spec.img_size, channels, spec.patch, spec.depth, spec.channels)


def _mmpretrain(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from mmpretrain.models import ImageClassifier

    if classes is None:
        return None
    size = dict(embed_dims=spec.channels, num_layers=spec.depth)
    size |= dict(tokens_mlp_dims=spec.channels // 2, channels_mlp_dims=4 * spec.channels)
    backbone = dict(type="MlpMixer", arch=size, img_size=spec.img_size, patch_size=spec.patch)
    backbone |= dict(patch_cfg=dict(in_channels=channels), norm_cfg=dict(type="LN", eps=NORM_EPS))
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=spec.channels) if classes else None
    return ImageClassifier(backbone, neck=dict(type="GlobalAveragePooling", dim=1), head=head)


FORMATS = {
    "timm": KeyMap(network=_timm),
    "mmpretrain": KeyMap(
        renames=(
            ("patch_embed.projection.{rest}", "stem.proj.{rest}"),
            ("layers.{i}.ln1.{rest}", "blocks.{i}.norm1.{rest}"),
            ("layers.{i}.ln2.{rest}", "blocks.{i}.norm2.{rest}"),
            ("layers.{i}.token_mix.layers.0.0.{rest}", "blocks.{i}.mlp_tokens.fc1.{rest}"),
            ("layers.{i}.token_mix.layers.1.{rest}", "blocks.{i}.mlp_tokens.fc2.{rest}"),
            ("layers.{i}.channel_mix.layers.0.0.{rest}", "blocks.{i}.mlp_channels.fc1.{rest}"),
            ("layers.{i}.channel_mix.layers.1.{rest}", "blocks.{i}.mlp_channels.fc2.{rest}"),
            ("ln1.{rest}", "norm.{rest}"),
            ("head.fc.{rest}", "head.{rest}"),
        ),
        network=_mmpretrain,
    ),
}
