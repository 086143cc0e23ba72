"""Convolutions on maps whose last axis is the channels, (B, H, W, C), as LayerNorm and linear layers want them.

A permuted view of such a map is what torch calls ``channels_last``, so no layer here copies its input to turn it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.layers import cpu
from mixtransfer.layers.linear import linear

__all__ = ["Conv", "Patches", "Pointwise", "pad", "strips"]


def pad(x: Tensor, bottom: int, right: int, top: int = 0, left: int = 0) -> Tensor:
    """Pad a map (B, H, W, C) with zeros; ``F.pad`` would copy one that needs none."""
    return F.pad(x, (0, 0, left, right, top, bottom)) if top or bottom or left or right else x


def strips(function: Callable[[Tensor], Tensor], x: Tensor, hidden: int) -> Tensor:
    """Return ``function(x)`` for a map (B, H, W, C) that is widened to ``hidden`` channels and filtered by 3 × 3.

    On CPU without gradient it runs on some rows at a time, each time with a row more on either side: as
    :func:`~mixtransfer.layers.cpu.in_chunks`, for functions whose tokens see their neighbors.
    """
    hidden *= x.size(0) * x.size(2)
    if not cpu.in_parts(x, hidden * x.size(1)):
        return function(x)
    rows = max(cpu.CHUNK_VALUES // hidden, 8)
    parts = []
    for start in range(0, x.size(1), rows):
        top = max(start - 1, 0)
        parts.append(function(x[:, top : start + rows + 1])[:, start - top : start - top + rows])
    return torch.cat(parts, dim=1)


class Conv(nn.Conv2d):
    """``nn.Conv2d`` from (B, H, W, C) to (B, h, w, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of a map."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Patches(Conv):
    """Non-overlapping patches of side ``patch``; sides are floored, what is left over at their ends is not seen.

    A side shorter than a patch is padded to one with zeros, so that every map has at least one token.
    """

    def __init__(self, channels: int, out_channels: int, patch: int):
        super().__init__(channels, out_channels, patch, patch)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ⌊H / p⌋, ⌊W / p⌋, D) for (B, H, W, C)."""
        bottom, right = (max(self.patch - side, 0) for side in x.shape[1:3])
        return super().forward(pad(x, bottom, right))


class Pointwise(nn.Conv2d):
    """A 1 × 1 convolution as one matrix product over the last axis; its weight keeps the shape (D, C, 1, 1)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, C)."""
        return linear(x, self.weight.flatten(1), self.bias)
