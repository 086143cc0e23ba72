"""Depthwise convolutions with kernels of any odd size, and a gradient of wide ones that keeps step on CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtransfer.layers.channels_last import Conv
from mixtransfer.layers.linear import WeightedFunction, plain_cpu_float32

__all__ = ["Depthwise", "depthwise"]

#: Side of a kernel from which on the gradient of its weight is faster as a convolution.
WIDE = 5


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of each channel with its own kernel (C, 1, k, k), k odd: (B, C, H, W) -> (B, C, H, W).

    oneDNN's gradient of a wide kernel takes longer than all the rest of its step: on CPU 33 ms for 1024 channels of
    36 × 36 with a kernel of 9 × 9, 1.4 ms as the convolution of the padded map with the gradient as its kernel.
    """
    if weight.size(-1) >= WIDE and torch.is_grad_enabled() and x.numel() and plain_cpu_float32(x, weight):
        return _Depthwise.apply(x, weight, bias)
    return _filtered(x, weight, bias)


def _filtered(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.size(-1) // 2, groups=len(weight))


class _Depthwise(WeightedFunction):
    """Written in operations that have gradients, so that this one has as well."""

    @staticmethod
    def forward(x, weight, bias):
        return _filtered(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_x = _filtered(gradient, weight.flip(2, 3), None) if needs_x else None
        of_weight = None
        if needs_weight:
            # Every channel of every sample is a map of its own here, and its gradient the kernel.
            maps, kernels = F.pad(x, [weight.size(-1) // 2] * 4).flatten(0, 1), gradient.flatten(0, 1).unsqueeze(1)
            of_weight = F.conv2d(maps.unsqueeze(0), kernels, groups=len(kernels)).view(len(x), *weight.shape).sum(dim=0)
        return of_x, of_weight, gradient.sum(dim=(0, 2, 3)) if needs_bias else None


class Depthwise(Conv):
    """:func:`depthwise` with parameters of its own, from (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of a map."""
        return depthwise(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)
