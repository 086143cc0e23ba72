"""Mixing methods: regions, the tokens that come from the partner, and targets, the label of the mix."""

from mixtransfer.mixing.draws import Draw, EvenDraw, PendingDraw, PixelDraw
from mixtransfer.mixing.methods import CutMix, Mixing, Mixup, MixupOrCutMix, TLAlign
from mixtransfer.mixing.regions import Box, RandomChoice, Region, TokenBox, WholeImage
from mixtransfer.mixing.smmix import AttendedSquare, FineGrained, SMMix
from mixtransfer.mixing.targets import AlignedTokens, Area, Target
from mixtransfer.mixing.tokenmix import ActivationMap, RandomTokens, TokenBlocks, TokenMix
from mixtransfer.mixing.transmix import AttentionWeighted, TransMix

__all__ = [
    "ActivationMap",
    "AlignedTokens",
    "Area",
    "AttendedSquare",
    "AttentionWeighted",
    "Box",
    "CutMix",
    "Draw",
    "EvenDraw",
    "FineGrained",
    "Mixing",
    "Mixup",
    "MixupOrCutMix",
    "PendingDraw",
    "PixelDraw",
    "RandomChoice",
    "RandomTokens",
    "Region",
    "SMMix",
    "TLAlign",
    "Target",
    "TokenBlocks",
    "TokenBox",
    "TokenMix",
    "TransMix",
    "WholeImage",
]
