"""Mixing methods: regions, the tokens that come from the partner, and targets, the label of the mix."""

from mixtransfer.mixing.blobs import CowMix, FMix, FourierBlobs, GaussianBlobs
from mixtransfer.mixing.draws import Draw, EvenDraw, PendingDraw, PixelDraw
from mixtransfer.mixing.gridmix import GridHoles, GridMix
from mixtransfer.mixing.methods import CutMix, Mixing, Mixup, MixupOrCutMix, TLAlign
from mixtransfer.mixing.mixpro import MaskedCells, MixPro, ProgressiveAttention
from mixtransfer.mixing.regions import Box, RandomChoice, Region, TokenBox, WholeImage
from mixtransfer.mixing.resizemix import ResizedImage, ResizeMix
from mixtransfer.mixing.smmix import AttendedSquare, FineGrained, SMMix
from mixtransfer.mixing.targets import AlignedTokens, Area, Target
from mixtransfer.mixing.tokenmix import ActivationMap, RandomTokens, TokenBlocks, TokenMix
from mixtransfer.mixing.transmix import AttentionWeighted, TransMix
from mixtransfer.mixing.truth_regions import ClassRegion, InstanceRegion

__all__ = [
    "ActivationMap",
    "AlignedTokens",
    "Area",
    "AttendedSquare",
    "AttentionWeighted",
    "Box",
    "ClassRegion",
    "CowMix",
    "CutMix",
    "Draw",
    "EvenDraw",
    "FMix",
    "FineGrained",
    "FourierBlobs",
    "GaussianBlobs",
    "GridHoles",
    "GridMix",
    "InstanceRegion",
    "MaskedCells",
    "MixPro",
    "Mixing",
    "Mixup",
    "MixupOrCutMix",
    "PendingDraw",
    "PixelDraw",
    "ProgressiveAttention",
    "RandomChoice",
    "RandomTokens",
    "Region",
    "ResizeMix",
    "ResizedImage",
    "SMMix",
    "TLAlign",
    "Target",
    "TokenBlocks",
    "TokenBox",
    "TokenMix",
    "TransMix",
    "WholeImage",
]
