"""The initialization that most published vision transformers share."""

from __future__ import annotations

from timm.layers import trunc_normal_
from torch import nn

__all__ = ["init_linear"]


def init_linear(module: nn.Module, std: float = 0.02) -> None:
    """Draw a linear layer's weight from a truncated normal and zero its bias; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
