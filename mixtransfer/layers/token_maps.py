"""Token-mixing matrices that follow from the relative position of tokens in a window (PosMLP, arXiv 2207.07284).

Shapes: N = w² tokens of a window, g groups of channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.layers.init import trunc_normal_
from mixtransfer.layers.positions import relative_bias, relative_position_index
from mixtransfer.layers.tables import table

__all__ = ["LearnedMap", "QuadraticMap", "offset_features"]


@table
def offset_features(window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return x, y, x², y², xy of the offset (x, y) of each pair (token, source) of a window, (5, N²)."""
    row, column = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(window, device=device)] * 2, indexing="ij"))
    x, y = column[None, :] - column[:, None], row[:, None] - row[None, :]
    return torch.stack([x, y, x * x, y * y, x * y]).flatten(1).to(dtype)


class QuadraticMap(nn.Module):
    """Token-mixing matrices from a quadratic form of the offset: softmax of −½ (Δ − δ)ᵀ P (Δ − δ) over the sources."""

    normalized = True

    def __init__(self, window: int, groups: int, generalized: bool):
        super().__init__()
        self.window, self.generalized = window, generalized
        self.attention_centers = nn.Parameter(0.01 * torch.randn(groups, 2))
        spreads = torch.eye(2).repeat(groups, 1, 1) if generalized else torch.ones(groups)
        self.attention_spreads = nn.Parameter(spreads + 0.01 * torch.randn_like(spreads))
        self.token_proj_n_bias = nn.Parameter(torch.zeros(1, window * window, 1))

    def forward(self) -> Tensor:
        """Return the matrices (g, N, N), rows of sum 1."""
        centers, spreads = self.attention_centers, self.attention_spreads
        if self.generalized:
            precision = spreads @ spreads.transpose(1, 2)
            linear = (precision @ centers.unsqueeze(2)).squeeze(2)
            quadratic = torch.stack([precision[:, 0, 0], precision[:, 1, 1], 2 * precision[:, 0, 1]], dim=1)
        else:
            linear = spreads.square().unsqueeze(1) * centers
            quadratic = F.pad(linear.new_ones(len(linear), 2), (0, 1))
        features = offset_features(self.window, linear.device, linear.dtype)
        scores = torch.cat([linear, -quadratic / 2], dim=1) @ features
        return scores.view(len(scores), self.window**2, -1).softmax(dim=2)


class LearnedMap(nn.Module):
    """Token-mixing matrices read from a learned table of offsets."""

    normalized = False
    index: Tensor

    def __init__(self, window: int, groups: int):
        super().__init__()
        table = torch.empty((2 * window - 1) ** 2, groups)
        self.window_relative_position_bias_table = nn.Parameter(trunc_normal_(table, std=0.02))
        self.token_proj_n_bias = nn.Parameter(torch.zeros(1, window * window, 1))
        self.register_buffer("index", relative_position_index(window, window), persistent=False)

    def forward(self) -> Tensor:
        """Return the matrices (g, N, N)."""
        return relative_bias(self.window_relative_position_bias_table, self.index).contiguous()
