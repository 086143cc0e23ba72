"""The token loss: labels of the tokens of a dense map, and a soft cross-entropy against them.

Shapes: B batch, H × W image, s stride, h × w tokens, C classes, K of them present in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixtransfer.errors import UserError

__all__ = ["token_loss", "token_shares"]


def token_shares(class_map: Tensor, stride: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the share of every class in every token, for the classes that occur.

    Args:
        class_map: (B, H, W) int64; −1 where a pixel has no label.
        stride: pixels a token covers in each direction.
        num_classes: C.

    Returns:
        Shares (B, K, ceil(H/s), ceil(W/s)) float32 of s² pixels, so that pixels without label, and those that a token
        at the border lacks, have no mass; and the K classes (K,). K is at least 1: a batch without labels has class 0
        without mass.

    Raises:
        UserError: the map holds a label that is not below ``num_classes``.
    """
    batch, height, width = class_map.shape
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    counts = torch.bincount((class_map + 1).flatten(), minlength=num_classes + 1)
    if len(counts) > num_classes + 1:
        raise UserError(
            f"label {len(counts) - 2} in the ground truth, but token_classifier.num_classes={num_classes}; "
            "make them agree, or mark the pixels as ignored"
        )
    classes = counts[1:].nonzero()[:, 0]
    if not len(classes):
        classes = classes.new_zeros(1)
    channel = counts.new_zeros(num_classes + 1)  # 0 for pixels without label, else 1 + position in classes
    channel[classes + 1] = torch.arange(1, len(classes) + 1, device=classes.device)

    token = (torch.arange(height, device=classes.device) // stride)[:, None] * columns
    token = token + torch.arange(width, device=classes.device) // stride
    plane = torch.arange(batch, device=classes.device)[:, None, None] * (len(classes) + 1) + channel[class_map + 1]
    shape = (batch, len(classes) + 1, rows, columns)
    shares = torch.bincount((plane * (rows * columns) + token).flatten(), minlength=math.prod(shape)).view(shape)
    return shares[:, 1:].float() / stride**2, classes


def token_loss(logits: Sequence[Tensor], labels: Sequence[Tensor], classes: Tensor) -> Tensor:
    """Return the soft cross-entropy of token logits, the mean over stages, in float32 or more.

    The mass of a token's label is its weight: a token without label does not count, and a batch without labels has
    loss 0 with the graph intact.

    Args:
        logits: (B, C, h, w) for each stage.
        labels: (B, K, h, w) for each stage.
        classes: (K,), the classes that the labels' channels stand for.
    """
    losses = []
    for scores, shares in zip(logits, labels, strict=True):
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        shares = shares.detach().to(scores.dtype)
        log_probability = scores.log_softmax(dim=1)[:, classes]
        mass = shares.sum().clamp(min=torch.finfo(scores.dtype).tiny)
        losses.append(-(shares * log_probability).sum() / mass)
    return torch.stack(losses).mean()
