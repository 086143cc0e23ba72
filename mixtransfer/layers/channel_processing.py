"""Channel processing: an MLP whose channels are weighted by attention among them.

Zhou et al., "Understanding The Robustness in Vision Transformers", ICML 2022, arXiv 2204.12451, section 3.3.

Shapes: B batch, N = h·w tokens of a map, D channels, H heads of c = D / H channels.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.layers.linear import Linear

__all__ = ["ChannelProcessing"]


class DepthwiseBranch(nn.Module):
    """Depthwise 3 × 3, GELU, BatchNorm, depthwise 3 × 3 over the token grid, (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=(2 / 9) ** 0.5)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the filtered tokens."""
        x = x.unflatten(1, size).permute(0, 3, 1, 2)
        return self.conv2(self.bn(F.gelu(self.conv1(x)))).permute(0, 2, 3, 1).flatten(1, 2)


class ConvMlp(nn.Module):
    """fc2(h + γ depthwise(h)) with h = fc1(x); without ``skip`` fc2(γ depthwise(h))."""

    def __init__(self, channels: int, hidden: int, skip: bool):
        super().__init__()
        self.skip = skip
        self.fc1 = Linear(channels, hidden)
        self.dwconv = DepthwiseBranch(hidden)
        self.gamma = nn.Parameter(torch.ones(hidden))
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return new tokens (B, N, D)."""
        x = self.fc1(x)
        branch = self.gamma * self.dwconv(x, size)
        return self.fc2(x + branch if self.skip else branch)


class ChannelProcessing(nn.Module):
    """An MLP whose channels are weighted by how their tokens agree with those of their head.

    Queries and keys are softmaxes over the tokens; a channel's weight is the sigmoid of the product of its query with
    the mean key of its head, times a learned temperature.

    Args:
        channels: D.
        heads: H.
        skip: whether the MLP adds what its depthwise branch reads, as FAN does and FAN-Swin does not.
    """

    def __init__(self, channels: int, heads: int, skip: bool = True):
        super().__init__()
        self.heads = heads
        self.q = Linear(channels, channels)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.mlp_v = ConvMlp(channels, 4 * channels, skip)
        self.norm_v = nn.LayerNorm(channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return new tokens (B, N, D)."""
        q = self.q(x).softmax(dim=1).unflatten(2, (self.heads, -1))
        k = x.softmax(dim=1).unflatten(2, (self.heads, -1)).mean(dim=3, keepdim=True)
        gate = (q * k).sum(dim=1, keepdim=True).sigmoid() * self.temperature[:, 0]
        return self.norm_v(self.mlp_v(x, size)) * gate.flatten(2)
