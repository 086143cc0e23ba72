"""Losses that targets and the classifiers of :mod:`mixtransfer.pretrain` share.

Shapes: B batch, K classes.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["divergence", "kl", "soft_cross_entropy"]


def soft_cross_entropy(logits: Tensor, targets: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the mean over the batch of −Σ targets · log softmax(logits), both (B, K).

    Rows that are False in ``present`` (B or 1,) count as 0.
    """
    rows = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    return (rows if present is None else rows * present).mean()


def divergence(logits: Tensor, expected: Tensor) -> Tensor:
    """Return the mean over the batch of KL(softmax(expected) ‖ softmax(logits)), both (B, K)."""
    return kl(logits, expected).mean()


def kl(logits: Tensor, expected: Tensor) -> Tensor:
    """Return KL(softmax(expected) ‖ softmax(logits)) over the last axis of both."""
    logits, expected = logits.log_softmax(dim=-1), expected.log_softmax(dim=-1)
    return (expected.exp() * (expected - logits)).sum(dim=-1)
