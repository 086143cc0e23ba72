"""Attention of a block, computed from its input: for methods that need a share of attention and not the map.

Shapes: B batch, N = h·w patches behind one class token, C channels, H heads of d = C / H channels.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["attention_maps", "class_attention", "patch_attention"]


@torch.no_grad()
def attention_maps(
    norm: nn.Module,
    x: Tensor,
    query: Tensor,
    bias: Tensor,
    key: Tensor,
    heads: int,
    grid: tuple[int, int],
    wanted: Collection[str],
) -> dict[str, Tensor]:
    """Return the maps (B, h, w) that ``wanted`` names of ``"class_attention"`` and ``"image_attention"``.

    The block itself runs fused, and only on samples that stochastic depth keeps; this is beside it and for all.

    Args:
        norm: the norm in front of the attention.
        x: tokens (B, 1+N, C) that enter the block.
        query: projection (C, C) to the queries.
        bias: bias (C,) of the queries; one of the keys would add the same to all products of a query.
        key: projection (C, C) to the keys.
        heads: H.
        grid: (h, w).
        wanted: further names are left to the caller.
    """
    found = {}
    if "class_attention" in wanted or "image_attention" in wanted:
        x = norm(x)
    for name, attention in (("class_attention", class_attention), ("image_attention", patch_attention)):
        if name in wanted:
            found[name] = attention(x, query, bias, key, heads)[:, 1:].unflatten(1, grid)
    return found


def class_attention(x: Tensor, query: Tensor, bias: Tensor, key: Tensor, heads: int) -> Tensor:
    """Return what the first of x (B, M, C) attends to, (B, M), mean over the heads: one row of the maps."""
    q = F.linear(x[:, 0], query, bias).unflatten(1, (heads, -1))
    # (q Kᵀ) xᵀ instead of q (x K)ᵀ: the tokens are not projected, but met by one query of C channels a head.
    q = torch.einsum("bhd,hdc->bhc", q * q.size(-1) ** -0.5, key.unflatten(0, (heads, -1)).to(q.dtype))
    return _softmax(q @ x.transpose(1, 2).to(q.dtype)).mean(dim=1)


def patch_attention(x: Tensor, query: Tensor, bias: Tensor, key: Tensor, heads: int) -> Tensor:
    """Return what all but the first of x (B, M, C) attend to, (B, M), mean over heads and tokens.

    The mean over queries needs the whole map (B, H, M−1, M), of this one block and for this line.
    """
    q = F.linear(x[:, 1:], query, bias).unflatten(2, (heads, -1)).transpose(1, 2)
    k = F.linear(x, key).unflatten(2, (heads, -1)).transpose(1, 2)
    return _softmax(q * q.size(-1) ** -0.5 @ k.transpose(2, 3)).mean(dim=(1, 2))


def _softmax(products: Tensor) -> Tensor:
    return products.softmax(dim=-1, dtype=torch.promote_types(products.dtype, torch.float32))
