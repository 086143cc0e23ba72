"""Patch embedding by a strided convolution, for any image size, and its kernels for other channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["COLORS", "PatchEmbed", "grid_of", "pad_to_multiple", "resize_channels"]

COLORS = 3


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) with zeros at the bottom and right until both sides are multiples of ``multiple``."""
    bottom, right = -x.size(2) % multiple, -x.size(3) % multiple
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


def grid_of(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return the rows and columns of patches of side ``patch`` that cover an image of ``size`` (height, width)."""
    return -(-size[0] // patch), -(-size[1] // patch)


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: (B, 3, H, W) -> (B, h·w, C) with h = ceil(H / p), and the grid (h, w)."""

    def __init__(self, in_channels: int, channels: int, patch: int, norm: nn.Module | None = None):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_channels, channels, patch, patch)
        self.norm = norm

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens and their grid."""
        x = self.proj(pad_to_multiple(images, self.patch))
        grid = (x.size(2), x.size(3))
        x = x.flatten(2).transpose(1, 2)
        return (x if self.norm is None else self.norm(x)), grid


def resize_channels(kernel: Tensor, channels: int) -> Tensor:
    """Fit (C, 3, k, k) to images of ``channels``; kernels for others than color images come back as they are.

    One channel sees grey images as the network saw them in color (R = G = B): the sum over colors. Beyond three, the
    further channels (depth, infrared) start at zero, so that the network answers as before.
    """
    if kernel.size(1) != COLORS or channels == 2:
        return kernel
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    return torch.cat([kernel, kernel.new_zeros(kernel.size(0), channels - COLORS, *kernel.shape[2:])], dim=1)
