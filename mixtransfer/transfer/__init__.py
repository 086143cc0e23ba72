"""Transfer to dense tasks: mixing while fine-tuning."""

from mixtransfer.transfer.channels import fit_channels
from mixtransfer.transfer.guards import CheckpointHook, InterruptHook, LossGuardHook
from mixtransfer.transfer.hornet_heads import HorFPN, HorUPerHead
from mixtransfer.transfer.optim import TransferOptimWrapperConstructor
from mixtransfer.transfer.token_mix_hook import TokenMixHook

__all__ = [
    "CheckpointHook",
    "HorFPN",
    "HorUPerHead",
    "InterruptHook",
    "LossGuardHook",
    "TokenMixHook",
    "TransferOptimWrapperConstructor",
    "fit_channels",
]
