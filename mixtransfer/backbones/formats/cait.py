"""Names of CaiT's entries in timm, and timm's network."""

from __future__ import annotations

from torch import nn

from mixtransfer.backbones.cait import Spec
from mixtransfer.backbones.formats.key_map import KeyMap

__all__ = ["FORMATS"]


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from timm.models.cait import Cait as Network

    size = dict(embed_dim=spec.channels, depth=spec.depth, num_heads=spec.heads)
    return Network(spec.img_size, in_chans=channels, num_classes=classes or 0, **size)


FORMATS = {"timm": KeyMap(network=_timm)}
