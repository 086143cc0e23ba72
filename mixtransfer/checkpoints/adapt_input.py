"""Fitting the input of a network to other images: another number of channels, another patch size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtransfer.layers.patches import COLORS, resize_channels

__all__ = ["resize_input", "resize_kernel"]


def resize_input(state: dict[str, Tensor], own: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the entries with the input convolution fitted to the shape that the network has.

    The input convolution is the entry of four dimensions whose shape in the file differs from the network's in nothing
    but its three color channels, or in nothing but its square kernel; no other convolution does.
    """
    resized = dict(state)
    for key, value in state.items():
        shape = own.get(key)
        if shape is None or value.dim() != 4 or len(shape) != 4 or tuple(value.shape) == shape:
            continue
        kernels = tuple(value.shape[2:]), shape[2:]
        if value.shape[:1] != shape[:1] or COLORS not in (value.shape[1], shape[1]):
            continue
        if value.shape[1] != shape[1]:
            value = resize_channels(value, shape[1])
        if kernels[0] != kernels[1] and value.shape[1] == shape[1] and _is_patch(kernels[0]) and _is_patch(kernels[1]):
            value = resize_kernel(value, kernels[1])
        resized[key] = value
    return resized


def resize_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a patch embedding (C, n, p, p) to patches of ``size``.

    The kernel that best keeps the embedding of a patch that is itself resampled bilinearly: the pseudo-inverse of that
    resampling (Beyer et al., "FlexiViT", arXiv 2212.08013, section 3.4).
    """
    old = tuple(kernel.shape[2:])
    basis = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    matrix = F.interpolate(basis, size=size, mode="bilinear", align_corners=False).flatten(1)  # (old, new)
    resized = kernel.double().flatten(2) @ torch.linalg.pinv(matrix.t()).to(kernel.device)
    return resized.view(*kernel.shape[:2], *size).to(kernel.dtype)


def _is_patch(kernel: tuple[int, ...]) -> bool:
    return kernel[0] == kernel[1] and kernel[0] % 2 == 0
