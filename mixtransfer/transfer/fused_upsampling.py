"""A convolution over upsampled levels, computed without upsampling them: the same sums with fewer products.

Heads upsample the levels of a pyramid to the finest, concatenate them and convolve. The convolution is linear, so it is
a sum over levels, and of one level a sum over the nine taps of shift(up(W_tap x)): a 1 × 1 product commutes with
upsampling, so it runs at the level's own resolution. Shift and bilinear upsampling are separable, and linear too: for
output row i, tap row ky and source row r, V[i, (ky, r)] is the weight that upsampling gives r in row i + ky − 1, and 0
where that row lies outside of the map. So V (H × 3h) holds interpolation, shift and zero border at once, the same for
columns (W × 3w), and the level's part of the answer is these two products of P, the nine taps' 1 × 1 products.
Convolving at the low resolution and upsampling afterwards would be another function: taps then reach as far as low
pixels do, and see another border. A 1 × 1 convolution has one tap, so its part is upsampled as it is.

Shapes: B batch, C channels of a level, D of the answer, H × W the finest map, h × w a coarser one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from mixtransfer.layers.linear import linear
from mixtransfer.layers.upsampling import upsampling_weights

__all__ = ["Levels", "PyramidConv2d", "fuse", "takes_levels"]

Size = tuple[int, int]
#: Sides of the kernels that are replaced, with their zero borders.
KERNELS = {(3, 3): (1, 1), (1, 1): (0, 0)}


class Levels(NamedTuple):
    """Maps (B, C_i, h_i, w_i) that are read as upsampled to ``size``."""

    maps: Sequence[Tensor]
    size: Size


class PyramidConv2d(nn.Conv2d):
    """A convolution, 3 × 3 with zero border or 1 × 1, over the concatenation of levels upsampled to one size.

    Args:
        conv: the plain convolution whose parameters it takes over, the same tensors.
        align_corners: how the levels are upsampled, as in :func:`torch.nn.functional.interpolate`, bilinear.
    """

    def __init__(self, conv: nn.Conv2d, align_corners: bool):
        # Initial values would only move the state of the random numbers: they are replaced.
        with torch.device("meta"):
            bias = conv.bias is not None
            super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding, bias=bias)
        self.weight, self.bias = conv.weight, conv.bias
        self.align_corners = align_corners

    @staticmethod
    def can_replace(conv: nn.Module) -> bool:
        """Say whether a module is such a convolution, of stride 1 and one group, and without hooks."""
        return (
            type(conv) is nn.Conv2d
            and KERNELS.get(conv.kernel_size) == conv.padding
            and (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
            and not (conv._forward_pre_hooks or conv._forward_hooks)
        )

    def forward(self, levels: Levels | Sequence[Tensor] | Tensor) -> Tensor:
        """Return (B, D, H, W) for levels, which the first gives its size if none is named, or for their concatenation.

        That is a map (B, ΣC_i, H, W).
        """
        if isinstance(levels, Tensor):
            return super().forward(levels)
        maps, size = levels if isinstance(levels, Levels) else (levels, levels[0].shape[2:])
        weights = self.weight.split([x.size(1) for x in maps], dim=1)
        pays = products_pay if self.kernel_size == (3, 3) else is_smaller
        coarse = [pays(x, size) for x in maps]
        pairs = [(x, w) for x, w, low in zip(maps, weights, coarse, strict=True) if low]
        if len(pairs) == len(maps):
            out = 0.0 if self.bias is None else self.bias[:, None, None]
        else:
            direct = [self._resize(x, size) for x, low in zip(maps, coarse, strict=True) if not low]
            weight = torch.cat([w for w, low in zip(weights, coarse, strict=True) if not low], dim=1)
            out = F.conv2d(torch.cat(direct, dim=1), weight, self.bias, padding=self.padding)
        if self.kernel_size == (1, 1):
            for x, weight in pairs:
                out = out + self._resize(F.conv2d(x, weight), size)
            return out
        return out + convolve_coarse(pairs, size, self.align_corners) if pairs else out

    def _resize(self, x: Tensor, size: Size) -> Tensor:
        if x.shape[2:] == size:
            return x
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)


def fuse(module: nn.Module, align_corners: bool) -> None:
    """Let a block of convolution, norm and activation take levels, if its convolution is one that can be replaced."""
    if (
        isinstance(module, ConvModule)
        and module.order[0] == "conv"
        and not (module.with_explicit_padding or module.with_spectral_norm)
        and PyramidConv2d.can_replace(module.conv)
    ):
        module.conv = PyramidConv2d(module.conv, align_corners)


def takes_levels(module: nn.Module) -> bool:
    """Say whether a block accepts levels; with mmcv's convolution that folds the norm in (evaluation), it does not."""
    conv = getattr(module, "conv", None)
    return isinstance(conv, PyramidConv2d) and module.efficient_conv_bn_eval_forward is None


def is_smaller(x: Tensor, size: Size) -> bool:
    """Say whether a level (B, C, h, w) has fewer positions than ``size``."""
    return x.size(2) * x.size(3) < size[0] * size[1]


def products_pay(x: Tensor, size: Size) -> bool:
    """Say whether a level (B, C, h, w) takes fewer multiplications at its own resolution than upsampled to ``size``.

    Per output channel 9Chw for the taps, then 9Hhw and 3HWw for the two matrices, against 9CHW; so levels of the finest
    size never pay, nor do few channels on a large map.
    """
    (height, width), (channels, h, w) = size, x.shape[1:]
    return 9 * channels * h * w + 9 * height * h * w + 3 * height * width * w < 9 * channels * height * width


def convolve_coarse(pairs: Sequence[tuple[Tensor, Tensor]], size: Size, align_corners: bool) -> Tensor:
    """Return the part (B, D, H, W) of coarse levels (B, C, h, w), given with their kernels (D, C, 3, 3), as one sum."""
    sizes = tuple(tuple(x.shape[2:]) for x, _ in pairs)
    make = _matrices if torch.compiler.is_compiling() else _kept_matrices
    first = pairs[0][0]
    dtype = torch.promote_types(first.dtype, torch.float32)
    vertical, horizontal = make(tuple(size), sizes, align_corners, dtype, first.device)
    columns = []
    for (x, kernel), matrix in zip(pairs, vertical, strict=True):
        batch, width = x.size(0), x.size(3)
        rows = x.permute(2, 0, 3, 1)  # (h, B, w, C): all that V does not touch lies behind its rows
        taps = kernel.permute(2, 3, 0, 1).flatten(1, 2).unbind(0)  # by ky: (3D, C), kx before D
        products = torch.cat([linear(rows, tap, None).flatten(1) for tap in taps])  # (3h, B·w·3·D)
        columns.append((matrix.to(products.dtype) @ products).view(size[0] * batch, width * 3, -1))
    columns = torch.cat(columns, dim=1)  # (H·B, 3Σw, D)
    out = torch.bmm(horizontal.to(columns.dtype).expand(columns.size(0), -1, -1), columns)
    return out.view(size[0], -1, size[1], out.size(-1)).permute(1, 3, 0, 2)


def _matrices(
    size: Size, sizes: tuple[Size, ...], align_corners: bool, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return V (H, 3h) of every level of ``sizes``, and their horizontal matrices side by side, (W, 3Σw)."""

    def shifted(source: int, target: int) -> Tensor:
        weights = F.pad(upsampling_weights(source, target, align_corners, dtype, device).t(), (1, 1))
        return torch.stack([weights[:, tap : tap + target] for tap in range(3)])  # (tap, source, target)

    vertical = tuple(shifted(h, size[0]).flatten(0, 1).t().contiguous() for h, _ in sizes)
    horizontal = torch.cat([shifted(w, size[1]).transpose(0, 1).flatten(0, 1) for _, w in sizes])
    return vertical, horizontal.t().contiguous()


#: For images of 512 × 512 pixels 0.4 MB each, of 1024 × 2048 pixels 3.5 MB.
_kept_matrices = lru_cache(maxsize=16)(torch.inference_mode(False)(torch.no_grad()(_matrices)))
