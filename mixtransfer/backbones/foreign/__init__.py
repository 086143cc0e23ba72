"""Networks that other libraries define, under the contract of :mod:`mixtransfer.backbones.base`: wrappers, no families.

A family is a network that is written here, equal to its paper's code. Here the library computes, and this folder brings
its networks under the contract, so that any of them can stand beside a family as a control.
"""

from mixtransfer.backbones.foreign.huggingface import HuggingFaceBackbone
from mixtransfer.backbones.foreign.timm_networks import TimmBackbone
from mixtransfer.backbones.foreign.wrapped import Sketch, WrappedBackbone

__all__ = ["HuggingFaceBackbone", "Sketch", "TimmBackbone", "WrappedBackbone"]
