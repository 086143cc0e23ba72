"""Convolutions on maps whose last axis is the channels, (B, H, W, C), as LayerNorm and linear layers want them.

A permuted view of such a map is what torch calls ``channels_last``, so no layer here copies its input to turn it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv", "Patches", "Pointwise"]


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
        return super().forward(F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x)


class Pointwise(nn.Conv2d):
    """A 1 × 1 convolution as one matrix product over the last axis; its weight keeps the shape (D, C, 1, 1)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, C)."""
        return F.linear(x, self.weight.flatten(1), self.bias)
