"""Backbones: one file a family, all under the contract of :mod:`mixtransfer.backbones.base`."""

from mixtransfer.backbones.base import Backbone, TokenClassifier
from mixtransfer.backbones.deit import VisionTransformer
from mixtransfer.backbones.swin import SwinTransformer

__all__ = ["FAMILIES", "Backbone", "SwinTransformer", "TokenClassifier", "VisionTransformer", "backbone_class"]

FAMILIES: tuple[type[Backbone], ...] = (VisionTransformer, SwinTransformer)


def backbone_class(arch: str) -> type[Backbone]:
    """Return the class that builds ``arch``, or raise a UserError that lists the near names."""
    from mixtransfer.errors import unknown_name

    for family in FAMILIES:
        if arch in family.archs:
            return family
    raise unknown_name("architecture", arch, [name for family in FAMILIES for name in family.archs])
