"""Backbones: one file a family, all under the contract of :mod:`mixtransfer.backbones.base`."""

from mixtransfer.backbones.base import Backbone, TokenClassifier
from mixtransfer.backbones.cait import CaiT
from mixtransfer.backbones.cmt import CMT
from mixtransfer.backbones.convmixer import ConvMixer
from mixtransfer.backbones.deit import VisionTransformer
from mixtransfer.backbones.dynamicvit import DynamicViT
from mixtransfer.backbones.dynamicvit_convnext import DynamicConvNeXt
from mixtransfer.backbones.dynamicvit_swin import DynamicSwin
from mixtransfer.backbones.fan import FAN
from mixtransfer.backbones.fan_swin import FANSwin
from mixtransfer.backbones.fcvit import FCViT
from mixtransfer.backbones.foreign import HuggingFaceBackbone, TimmBackbone, WrappedBackbone
from mixtransfer.backbones.hire_mlp import HireMLP
from mixtransfer.backbones.hornet import HorNet
from mixtransfer.backbones.mixmim import MixMIMEncoder
from mixtransfer.backbones.mlp_mixer import MLPMixer
from mixtransfer.backbones.msg_transformer import MSGTransformer
from mixtransfer.backbones.posmlp import PosMLP
from mixtransfer.backbones.pvt import PVT, PVTv2
from mixtransfer.backbones.pyramid_tnt import PyramidTNT
from mixtransfer.backbones.raft_mlp import RaftMLP
from mixtransfer.backbones.regionvit import RegionViT
from mixtransfer.backbones.sequencer import Sequencer2D
from mixtransfer.backbones.sret import SReT
from mixtransfer.backbones.swin import SwinTransformer
from mixtransfer.backbones.swin_mlp import SwinMLP
from mixtransfer.backbones.tnt import TNT
from mixtransfer.errors import unknown_name

__all__ = [
    "CMT",
    "FAMILIES",
    "FAN",
    "FOREIGN",
    "PVT",
    "TNT",
    "Backbone",
    "CaiT",
    "ConvMixer",
    "DynamicConvNeXt",
    "DynamicSwin",
    "DynamicViT",
    "FANSwin",
    "FCViT",
    "HireMLP",
    "HorNet",
    "HuggingFaceBackbone",
    "MLPMixer",
    "MSGTransformer",
    "MixMIMEncoder",
    "PVTv2",
    "PosMLP",
    "PyramidTNT",
    "RaftMLP",
    "RegionViT",
    "SReT",
    "Sequencer2D",
    "SwinMLP",
    "SwinTransformer",
    "TimmBackbone",
    "TokenClassifier",
    "VisionTransformer",
    "backbone_class",
]

FAMILIES: tuple[type[Backbone], ...] = (
    VisionTransformer,
    SwinTransformer,
    TNT,
    HorNet,
    PyramidTNT,
    HireMLP,
    RaftMLP,
    MixMIMEncoder,
    PVT,
    PVTv2,
    CaiT,
    RegionViT,
    SwinMLP,
    MSGTransformer,
    SReT,
    CMT,
    PosMLP,
    FAN,
    FANSwin,
    FCViT,
    Sequencer2D,
    MLPMixer,
    ConvMixer,
    DynamicViT,
    DynamicSwin,
    DynamicConvNeXt,
)


#: Wrappers of the networks of libraries, each of which takes the names behind a prefix.
FOREIGN: tuple[type[WrappedBackbone], ...] = (TimmBackbone, HuggingFaceBackbone)


def backbone_class(arch: str) -> type[Backbone]:
    """Return the class that builds ``arch``, or raise a UserError that lists the near names."""
    for family in (*FAMILIES, *FOREIGN):
        if arch in family.archs:
            return family
    raise unknown_name("architecture", arch, [name for family in FAMILIES for name in family.archs])
