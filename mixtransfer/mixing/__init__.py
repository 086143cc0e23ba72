"""Mixing methods: which tokens come from the partner (regions), and what the label becomes (targets)."""

from mixtransfer.mixing.methods import CutMix, Mixing, Mixup, TLAlign
from mixtransfer.mixing.regions import Box, Draw, PixelDraw, Region, TokenBox, WholeImage
from mixtransfer.mixing.switch import MixupOrCutMix, OneOf
from mixtransfer.mixing.targets import AlignedTokens, Area, Target

__all__ = [
    "AlignedTokens",
    "Area",
    "Box",
    "CutMix",
    "Draw",
    "Mixing",
    "Mixup",
    "MixupOrCutMix",
    "OneOf",
    "PixelDraw",
    "Region",
    "TLAlign",
    "Target",
    "TokenBox",
    "WholeImage",
]
