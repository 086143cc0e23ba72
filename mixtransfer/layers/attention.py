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
from torch.autograd.function import once_differentiable

__all__ = ["ClassAttention", "attend", "attend_windows", "mix_labels"]

FEW_PAIRS = 32 * 32  # up to here a map on CPU is cheaper than the backward pass of the flash kernel
COLUMN_MULTIPLE = 8  # the CPU flash kernel is fastest when a head's width is a multiple of the vector width


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
    if labels is None:
        if q.device.type == "cpu" and torch.is_grad_enabled() and q.size(2) * k.size(2) <= FEW_PAIRS:
            return (q * q.size(-1) ** -0.5 @ k.transpose(2, 3)).softmax(dim=-1) @ v, None
        return F.scaled_dot_product_attention(q, k, v), None
    if q.device.type == "cpu" and q.dtype == labels.dtype and labels.size(-1) <= q.size(-1):
        return _FlashWithLabels.apply(q, k, v, labels)
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
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or bias.requires_grad):
        return _BiasedAttention.apply(q, k, v, bias, labels)
    if bias.size(0) > 1:
        bias = bias.repeat(q.size(0) // bias.size(0), 1, 1, 1)
    bias = bias.to(q.dtype)
    if not torch.is_grad_enabled():
        bias = bias.detach()  # a parameter would keep the fused kernels away
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out, None if labels is None else _attended(q, k, labels, bias)


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
    for part in labels.split(width, dim=-1):
        columns = F.pad(part, (0, width - part.size(-1))).unsqueeze(1).expand(-1, heads, -1, -1)
        attended = F.scaled_dot_product_attention(q, k, columns, attn_mask=bias)
        moved.append(attended[..., : part.size(-1)].mean(dim=1))
    return torch.cat(moved, dim=-1)


class _FlashWithLabels(torch.autograd.Function):
    """CPU flash attention whose value head is widened by the label columns, forward only.

    Queries and keys are padded with zeros to the same width, which leaves their products as they are. The backward
    kernel runs on the unpadded tensors, with the log-sum-exp of the forward.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        heads, width, channels = q.size(1), q.size(-1), labels.size(-1)
        extra = -(-channels // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        columns = F.pad(labels, (0, extra - channels)).unsqueeze(1).expand(-1, heads, -1, -1)
        scale = width**-0.5
        wide, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            F.pad(q, (0, extra)), F.pad(k, (0, extra)), torch.cat([v, columns], dim=-1), 0.0, False, scale=scale
        )
        out = wide[..., :width].contiguous()
        moved = wide[..., width : width + channels].mean(dim=1)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        ctx.mark_non_differentiable(moved)
        return out, moved

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor, _grad_moved: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, False, scale=ctx.scale
        )
        return *grads, None


class _BiasedAttention(torch.autograd.Function):
    """Window attention with a trainable bias, for CPU training.

    The fused CPU kernels give no gradient for the bias. Here the map is made once, turned into probabilities in place
    and kept for the backward pass; the gradient of the bias is one sum over images and windows.
    """

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        groups, heads, tokens, width = q.shape
        q, k, v = (x.reshape(groups * heads, -1, width) for x in (q, k, v))
        scale = width**-0.5
        attention = torch.bmm(q * scale, k.transpose(1, 2))
        grouped = attention.view(-1, *bias.shape)
        grouped += bias
        torch.softmax(attention, dim=-1, out=attention)
        out = torch.bmm(attention, v).view(groups, heads, tokens, width)
        moved = None
        if labels is not None:
            mean = attention.view(groups, heads, tokens, -1).mean(dim=1, dtype=labels.dtype)
            moved = torch.bmm(mean, labels)
            ctx.mark_non_differentiable(moved)
        ctx.save_for_backward(q, k, v, attention)
        ctx.scale, ctx.bias_shape, ctx.bias_dtype = scale, bias.shape, bias.dtype
        return out, moved

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor, _grad_moved: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, attention = ctx.saved_tensors
        shape = (*grad_out.shape[:2], -1, grad_out.size(-1))
        grad_out = grad_out.reshape(q.shape)
        grad_v = torch.bmm(attention.transpose(1, 2), grad_out)
        grad = torch.bmm(grad_out, v.transpose(1, 2))
        grad = torch._softmax_backward_data(grad, attention, -1, attention.dtype)
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = grad.view(-1, *ctx.bias_shape)
            # A sum over one is slow.
            grad_bias = (
                grad_bias.sum(dim=0, dtype=ctx.bias_dtype) if len(grad_bias) > 1 else grad_bias[0].to(ctx.bias_dtype)
            )
        grad_q = torch.bmm(grad, k).mul_(ctx.scale)
        grad_k = torch.bmm(grad.transpose(1, 2), q).mul_(ctx.scale)
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape), grad_bias, None
