"""Learned position tables at other sizes than they were trained for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["relative_position_index", "resize_position_table", "resize_relative_table"]


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


def relative_position_index(height: int, width: int) -> Tensor:
    """Return the row of the relative-position table for each pair of tokens of a window, (h·w, h·w) int64."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    rows = y[:, None] - y[None, :] + height - 1
    return rows * (2 * width - 1) + x[:, None] - x[None, :] + width - 1
