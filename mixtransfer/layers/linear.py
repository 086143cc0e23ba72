"""Linear layers of token maps, and the MLP made of two of them; parameters are named as timm names them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.layers import cpu

__all__ = ["Linear", "Mlp", "gelu", "linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b over the last axis: (…, C) -> (…, D) for a weight (D, C)."""
    return cpu.linear(x, weight, bias) if cpu.linear_pays(x, weight) else F.linear(x, weight, bias)


def gelu(x: Tensor) -> Tensor:
    """Return GELU(x), overwriting ``x`` where :func:`~mixtransfer.layers.cpu.may_overwrite` allows it.

    The caller must not use ``x`` afterwards. The MLPs of Swin-T's first two stages at 512² take 0.8 to 0.9 of the time.
    """
    return torch.ops.aten.gelu_(x) if cpu.may_overwrite(x) else F.gelu(x)


class Linear(nn.Linear):
    """``nn.Linear`` computed by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, C)."""
        return linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Linear, GELU, linear over the last axis of (…, C)."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.fc2 = Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C)."""
        return cpu.in_chunks(self.rows, x, self.fc1.out_features)

    def rows(self, x: Tensor) -> Tensor:
        """Return the same for tokens that are few, or that need a gradient."""
        return self.fc2(gelu(self.fc1(x)))
