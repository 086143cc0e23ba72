"""Fused multi-head attention that can carry token labels along.

Shapes: B batch, h heads, N queries, M keys, d channels a head, K label channels, G windows of all images.

Token-label rule (TL-Align, Xiao et al., ICCV 2023, arXiv 2210.06455, section 3.2): the label of a query becomes the
mean of itself and of the labels it attended to, ``L <- (L + mean_heads(A) L) / 2``. The rule needs ``mean_heads(A) L``
only, so the map A is never kept: on CPU the labels ride as extra value columns of the flash kernel, elsewhere they go
through a second fused call without gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.layers import cpu
from mixtransfer.layers.attention_maps import note

__all__ = ["ClassAttention", "attend", "attend_windows", "attended_labels", "mix_labels"]


def attend(q: Tensor, k: Tensor, v: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return softmax(q kᵀ / √d) v and, with ``labels``, the labels that each query attended to.

    Args:
        q: queries (B, h, N, d).
        k: keys (B, h, M, d).
        v: values (B, h, M, d).
        labels: labels of the keys (B, M, K), without gradient.

    Returns:
        The output (B, h, N, d) and ``mean_heads(A) @ labels`` (B, N, K) or None.
    """
    note(q, k)
    if labels is None:
        few = cpu.attend_few(q, k, v)
        return F.scaled_dot_product_attention(q, k, v) if few is None else few, None
    if cpu.labels_fit(q, labels):
        return cpu.FlashWithLabels.apply(q, k, v, labels)
    return F.scaled_dot_product_attention(q, k, v), _attended(q, k, labels)


def attend_windows(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Attention inside windows with an additive bias.

    Args:
        q: queries (G, h, N, d), G = B · W with the window index fastest.
        k: keys (G, h, M, d).
        v: values, like ``k``.
        bias: (1, h, N, M) for all windows, or (W, h, N, M) where windows differ; −inf excludes a pair.
        labels: labels of the keys (G, M, K), without gradient.

    Returns:
        The output (G, h, N, d) and ``mean_heads(A) @ labels`` (G, N, K) or None.
    """
    note(q, k, bias)
    if cpu.bias_is_trained(q, bias):
        return cpu.BiasedAttention.apply(q, k, v, bias, labels)
    bias = bias.to(q.dtype)
    if not torch.is_grad_enabled():
        bias = bias.detach()  # a parameter would keep the fused kernels away
    return _fused(q, k, v, bias), None if labels is None else _attended(q, k, labels, bias)


def attended_labels(attention: Tensor, labels: Tensor) -> Tensor:
    """Return ``mean_heads(A) @ labels`` (B, N, K) for a map A (B, h, N, M), in the labels' precision."""
    mean = attention.detach().mean(dim=1, dtype=labels.dtype)
    if attention.dtype != labels.dtype:
        # Rows of half precision do not add up to 1 exactly, and labels would gain or lose mass.
        mean /= mean.sum(dim=-1, keepdim=True)
    with torch.autocast(labels.device.type, enabled=False):
        return mean @ labels


def mix_labels(labels: Tensor, attended: Tensor) -> Tensor:
    """Apply the token-label rule: the mean of a token's own label and of the labels it attended to."""
    return (labels + attended) / 2


class ClassAttention(nn.Module):
    """Attention of the class token, the first, to itself and all patches (CaiT, arXiv 2103.17239, section 3)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the new class token (B, 1, C) of tokens (B, 1+N, C), and the label it attended to (B, 1, K)."""
        q, k, v = (
            linear(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear, tokens in ((self.q, x[:, :1]), (self.k, x), (self.v, x))
        )
        out, attended = attend(q, k, v, labels)
        return self.proj(out.transpose(1, 2).flatten(2)), attended


@torch.no_grad()
def _attended(q: Tensor, k: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``mean_heads(A) @ labels`` (B, N, K) by fused calls over at most d label channels at a time."""
    heads, width = q.size(1), q.size(-1)
    q, k = q.detach().to(labels.dtype), k.detach().to(labels.dtype)
    bias = None if bias is None else bias.detach().to(labels.dtype)
    moved = []
    # Autocast would round the labels to half precision again.
    with torch.autocast(q.device.type, enabled=False):
        for part in labels.split(width, dim=-1):
            columns = F.pad(part, (0, width - part.size(-1))).unsqueeze(1).expand(-1, heads, -1, -1)
            attended = _fused(q, k, columns, bias)
            moved.append(attended[..., : part.size(-1)].mean(dim=1))
    return torch.cat(moved, dim=-1)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return fused attention (G, h, N, d) with a bias (1 or W, h, N, M), or none."""
    if bias is None or bias.size(0) == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    windows = bias.size(0)
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.repeat(q.size(0) // windows, 1, 1, 1))
    # The windows of an image as heads: the bias of all images is one, which repeated would be as large as the map.
    heads = q.size(1)
    q, k, v = (x.unflatten(0, (-1, windows)).flatten(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(-1, heads, -1, -1).flatten(0, 1)[None])
    return out.unflatten(1, (windows, -1)).flatten(0, 1)
