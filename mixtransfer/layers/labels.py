"""Token labels: putting a label map onto a token grid and back.

A label map is (B, K, h, w); on tokens the same labels are rows, (B, h·w, K). Every helper keeps the sum over K.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["image_label", "labels_to_map", "labels_to_tokens", "pool_labels"]


def pool_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a label map (B, K, h, w) to ``size`` by averaging over the area behind each token."""
    return labels if labels.shape[-2:] == size else F.adaptive_avg_pool2d(labels, size)


def labels_to_tokens(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the labels of a grid of tokens as rows (B, h·w, K), without gradient."""
    return pool_labels(labels.detach(), size).flatten(2).transpose(1, 2).contiguous()


def labels_to_map(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Return label rows (B, h·w, K) as a map (B, K, h, w)."""
    return rows.transpose(1, 2).unflatten(2, size)


def image_label(labels: Tensor) -> Tensor:
    """Return the label of the whole image (B, K), the mean over a label map: what a class token carries at first."""
    return labels.detach().mean(dim=(2, 3))
