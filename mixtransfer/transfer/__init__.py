"""Transfer to dense tasks: mixing while fine-tuning, and the dense heads that a paper publishes."""

from mixtransfer.transfer.hornet_heads import HorFPN, HorUPerHead
from mixtransfer.transfer.segformer_head import SegFormerHead
from mixtransfer.transfer.token_mix_hook import TokenMixHook

__all__ = ["HorFPN", "HorUPerHead", "SegFormerHead", "TokenMixHook"]
