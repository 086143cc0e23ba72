"""The token loss: labels of the tokens of a dense map, and a soft cross-entropy against them.

Shapes: B batch, H × W image, s stride, h × w tokens, C classes, K of them present in the batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mixtransfer.errors import UserError

__all__ = ["count_tokens", "shares_of", "token_loss", "token_shares"]


def token_shares(class_map: Tensor, stride: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the share of every class in every token, for the classes that occur.

    Args:
        class_map: (B, H, W) int64 on the CPU; −1 where a pixel has no label.
        stride: pixels a token covers in each direction.
        num_classes: C.

    Returns:
        Shares (B, K, ceil(H/s), ceil(W/s)) float32 of s² pixels, so that pixels without label, and those that a token
        at the border lacks, have no mass; and the K classes (K,). K is at least 1: a batch without labels has class 0
        without mass.

    Raises:
        UserError: the map holds a label that is not below ``num_classes``.
    """
    highest = int(class_map.max())
    if highest >= num_classes:
        raise UserError(
            f"label {highest} in the ground truth, but token_classifier.num_classes={num_classes}; "
            "make them agree, or mark the pixels as ignored"
        )
    classes = (class_map.numpy() + 1).astype(np.min_scalar_type(num_classes))
    counts, present = count_tokens(classes, stride)
    return shares_of(torch.from_numpy(counts), stride), torch.from_numpy(present)


def shares_of(counts: Tensor, stride: int) -> Tensor:
    """Return the shares (B, K, h, w) float32 that counts of pixels are of a token's s² pixels."""
    return counts.float().div_(stride**2)


def count_tokens(classes: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many of each token's pixels are of each class that occurs, and these classes.

    Most tokens have pixels of one class, which their lowest and highest one tell; only the others are counted pixel by
    pixel.

    Args:
        classes: (B, H, W) unsigned, one more than the class of each pixel, 0 where there is none.
        stride: pixels a token covers in each direction.

    Returns:
        Counts (B, K, ceil(H/s), ceil(W/s)) of a small unsigned type, and classes (K,) int64, K at least 1.
    """
    batch, height, width = classes.shape
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    bottom, right = rows * stride - height, columns * stride - width
    if bottom or right:
        classes = np.pad(classes, ((0, 0), (0, bottom), (0, right)))
    lines = classes.reshape(batch, rows, stride, columns * stride)
    low, high = (
        functools.reduce(pick, [line[..., first::stride] for first in range(stride)])
        for pick, line in ((np.minimum, lines.min(axis=2)), (np.maximum, lines.max(axis=2)))
    )
    image, row, column = np.nonzero(low != high)
    pixels = lines.reshape(batch, rows, stride, columns, stride)[image, row, :, column].reshape(len(image), stride**2)
    low[image, row, column] = 0

    seen = np.zeros(int(max(low.max(initial=0), pixels.max(initial=0))) + 1, dtype=bool)
    seen[low], seen[pixels] = True, True
    seen[0] = False
    present = np.flatnonzero(seen)
    if not len(present):
        present = np.ones(1, dtype=np.int64)
        seen = np.zeros(2, dtype=bool)
    # Plane 0 takes the pixels without class.
    plane = np.zeros(len(seen), dtype=np.int64)
    plane[present] = np.arange(1, len(present) + 1)
    counts = np.zeros((batch, len(present) + 1, rows, columns), dtype=np.min_scalar_type(stride**2))
    for number, value in enumerate(present, start=1):
        np.multiply(low == value, stride**2, out=counts[:, number], casting="unsafe")
    flat = counts.reshape(-1)
    place = (image * counts.shape[1] * rows + row) * columns + column
    for pixel in plane[pixels].T * (rows * columns):
        flat[place + pixel] += 1
    return counts[:, 1:], present - 1


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
