"""Depthwise convolutions with kernels of any odd size."""

from __future__ import annotations

from torch import Tensor

from mixtransfer.layers import cpu
from mixtransfer.layers.channels_last import Conv

__all__ = ["Depthwise", "depthwise"]


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of each channel with its own kernel (C, 1, k, k), k odd: (B, C, H, W) -> (B, C, H, W)."""
    return cpu.depthwise(x, weight, bias) if cpu.depthwise_pays(x, weight) else cpu.filtered(x, weight, bias)


class Depthwise(Conv):
    """:func:`depthwise` with parameters of its own, from (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of a map."""
        return depthwise(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)
