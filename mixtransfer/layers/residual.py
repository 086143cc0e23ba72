"""Residual sums with stochastic depth, which computes a branch only for the samples that keep it.

Shapes: B batch, N tokens, C channels, K label channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixtransfer.errors import UserError
from mixtransfer.layers.attention import mix_labels
from mixtransfer.layers.attention_maps import noting
from mixtransfer.layers.host_draws import drawn
from mixtransfer.layers.overwrite import overwriting_allowed

__all__ = [
    "add_",
    "checked_rate",
    "drop_path_rates",
    "keep_mask",
    "residual",
    "residual_of_all",
    "residual_with_labels",
]


def checked_rate(rate: float) -> float:
    """Return a backbone's ``drop_path_rate``.

    Raises:
        UserError: it is no probability, or 1, which would drop everything.
    """
    if not 0 <= rate < 1:
        raise UserError(f"drop_path_rate={rate}: give 0 or more, below 1")
    return rate


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return the rates of ``depth`` blocks, rising linearly from 0 to ``rate`` (Huang et al., arXiv 1603.09382)."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def keep_mask(batch: int, rate: float, like: Tensor) -> Tensor:
    """Draw which of ``batch`` samples keep a branch; return their factors 0 or 1/(1−rate), shape (batch, 1, 1, …)."""
    if torch.compiler.is_compiling():
        kept = torch.rand(batch, device=like.device) >= rate
    else:
        kept, _ = drawn(_kept, batch, rate, device=like.device)
    return (kept.to(like.dtype) / (1 - rate)).view(batch, *([1] * (like.dim() - 1)))


def _kept(batch: int, rate: float) -> tuple[Tensor, Tensor]:
    """Draw which of ``batch`` samples keep a branch, (batch,) bool, and return their numbers beside it."""
    kept = torch.rand(batch) >= rate
    return kept, kept.nonzero().flatten()


def residual(x: Tensor, branch: Callable[[Tensor], Tensor], rate: float, training: bool) -> Tensor:
    """Return ``x + branch(x)`` with stochastic depth at ``rate`` over the first dimension.

    In training a dropped sample's branch is not computed at all; the draw is made on the CPU, so that no device has
    to be waited for (:mod:`~mixtransfer.layers.host_draws`). A compiled graph keeps its shapes instead and multiplies
    by the mask.
    """
    if not training or rate == 0:
        return add_(x, branch(x))
    if torch.compiler.is_compiling():
        return x + branch(x) * keep_mask(x.size(0), rate, x)
    _, kept = drawn(_kept, x.size(0), rate, device=x.device)
    if len(kept) == 0:
        # A branch that nobody keeps still belongs to the graph, so that each of its parameters gets a gradient.
        return x + branch(x[:1]) * 0
    if len(kept) == x.size(0):
        return torch.add(x, branch(x), alpha=1 / (1 - rate))
    out = branch(x.index_select(0, kept))
    return x.index_add(0, kept, out.to(x.dtype), alpha=1 / (1 - rate))


def residual_of_all(x: Tensor, branch: Tensor, rate: float, training: bool) -> Tensor:
    """Return ``x + branch`` with stochastic depth, where a branch was computed for all samples, dropped or not.

    Branches with a BatchNorm are: its statistics are those of the whole batch.
    """
    return x + (branch * keep_mask(len(x), rate, x) if training and rate else branch)


def residual_with_labels(
    x: Tensor,
    labels: Tensor | None,
    branch: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]],
    rate: float,
    training: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the residual of an attention branch, and the tokens' labels after it by the token-label rule.

    A sample that drops the branch still moves its labels (TL-Align, arXiv 2210.06455), so with labels attention runs
    for all samples, and so it does where it is watched; otherwise this is :func:`residual`.

    Args:
        x: tokens (B, N, C).
        labels: their labels (B, N, K), or None.
        branch: from tokens and labels to what is added to the tokens, and the labels that each token attended to.
        rate: stochastic depth.
        training: whether samples drop the branch.
    """
    if labels is None and not noting():
        return residual(x, lambda y: branch(y, None)[0], rate, training), None
    out, attended = branch(x, labels)
    if training and rate:
        out = out * keep_mask(len(x), rate, x)
    if labels is None:
        return x + out, None
    assert attended is not None, "a branch returns labels where it gets some"
    return x + out, mix_labels(labels, attended)


def add_(x: Tensor, branch: Tensor) -> Tensor:
    """Return ``x + branch``, overwriting ``branch``.

    The caller must not use ``branch`` afterwards. Views, and what a forward hook may have kept, stay as they are.
    """
    if torch.compiler.is_compiling() or not overwriting_allowed() or branch.dtype != x.dtype or branch._is_view():
        return x + branch
    return branch.add_(x)
