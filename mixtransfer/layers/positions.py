"""Position tables at other sizes than they were trained for, and codes that follow from the size."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.layers.channels_last import Pointwise

__all__ = [
    "FourierCode",
    "fourier_code",
    "relative_bias",
    "relative_position_index",
    "resize_position_table",
    "resize_relative_table",
    "resize_relative_tables",
    "resize_square_table",
]

#: Of :class:`FourierCode`: channels an axis, and the base of their wavelengths.
FREQUENCIES, TEMPERATURE = 32, 10000


def resize_position_table(table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resample absolute positions (1, prefix + h·w, C) from grid ``old`` to ``new``; leading prefix rows stay.

    Bicubic without antialiasing, as DeiT fine-tunes at other resolutions (Touvron et al., arXiv 2012.12877, section 4),
    or another ``mode`` of :func:`torch.nn.functional.interpolate`.
    """
    if old == new:
        return table
    prefix = table.size(1) - old[0] * old[1]
    grid = table[:, prefix:].transpose(1, 2).unflatten(2, old)
    grid = F.interpolate(grid, size=new, mode=mode, align_corners=False)
    return torch.cat([table[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)


def resize_relative_table(table: Tensor, window: int) -> Tensor:
    """Resample a relative-position table ((2w₀−1)², h) to windows of ``window``, bicubic as the Swin code does."""
    side, new = int(table.size(0) ** 0.5), 2 * window - 1
    if side == new:
        return table
    grid = table.t().reshape(1, table.size(1), side, side)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].t().contiguous()


def resize_relative_tables(state: dict[str, Tensor], network: nn.Module, window: int) -> dict[str, Tensor]:
    """Return entries with every ``relative_position_bias_table`` of a network resampled to windows of ``window``."""
    own = dict(network.named_parameters())
    return {
        key: resize_relative_table(value, window)
        if key.endswith("relative_position_bias_table") and key in own and value.shape[1:] == own[key].shape[1:]
        else value
        for key, value in state.items()
    }


def resize_square_table(table: Tensor, own: Tensor, grid: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Return a checkpoint's position table (1, prefix + s², C), resampled from its square grid to ``grid``.

    ``own`` (1, prefix + h·w, C) is the network's. A table of another form comes back as it is: misshapen, which the
    loader then says by name.
    """
    prefix = own.size(1) - grid[0] * grid[1]
    if table.dim() != 3 or table.shape == own.shape:
        return table
    side = math.isqrt(max(table.size(1) - prefix, 0))
    if not side or side * side + prefix != table.size(1):
        return table
    return resize_position_table(table, (side, side), grid, mode)


def relative_bias(table: Tensor, index: Tensor) -> Tensor:
    """Return the bias of each pair of tokens, (h, N, N), from a table (rows, h) and its rows (N, N).

    The gradient of indexing may add in the order in which threads arrive, from some ten thousand values on; that of an
    embedding adds in one order, so that a resumed training repeats an uninterrupted one.
    """
    return F.embedding(index, table).permute(2, 0, 1)


def relative_position_index(height: int, width: int) -> Tensor:
    """Return the row of the relative-position table for each pair of tokens of a window, (h·w, h·w) int64."""
    # Sums of tensors on the meta device, where a config's widths are found, would import the compiler: a second.
    y, x = np.divmod(np.arange(height * width), width)
    rows = y[:, None] - y[None, :] + height - 1
    return torch.tensor(rows * (2 * width - 1) + x[:, None] - x[None, :] + width - 1)


def fourier_code(count: int, paired: bool, device: torch.device) -> Tensor:
    """Return sines and cosines of the positions 1 … ``count`` of an axis, as a share of it, (count, 32) float32."""
    channel = torch.arange(FREQUENCIES, device=device)
    exponent = (channel - channel % 2 if paired else channel) / FREQUENCIES
    position = torch.arange(1, count + 1, device=device) / (count + 1e-6) * (2 * torch.pi)
    angle = position[:, None] / TEMPERATURE**exponent
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())


class FourierCode(nn.Module):
    """A linear map of the Fourier codes of a token's row and column (El-Nouby et al., XCiT, arXiv 2106.09681)."""

    def __init__(self, channels: int):
        super().__init__()
        self.token_projection = Pointwise(2 * FREQUENCIES, channels)

    def forward(self, size: tuple[int, int], paired: bool) -> Tensor:
        """Return the codes of a grid (h, w, D)."""
        weight = self.token_projection.weight.flatten(1)
        # Rows and columns are projected apart and broadcast: h + w products instead of h · w.
        rows, columns = (
            F.linear(fourier_code(count, paired, weight.device).to(weight.dtype), part)
            for count, part in zip(size, weight.split(FREQUENCIES, dim=1), strict=True)
        )
        return rows[:, None] + columns + cast(Tensor, self.token_projection.bias)
