"""Transfer to dense tasks: mixing while fine-tuning, and heads, which the registry imports when a config names one."""

from mixtransfer.transfer.mixup_hook import MixupHook
from mixtransfer.transfer.token_mix_hook import TokenMixHook

__all__ = ["MixupHook", "TokenMixHook"]
