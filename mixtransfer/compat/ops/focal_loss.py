"""Focal losses (arXiv 1708.02002); N samples, C classes, ``weight`` (C,) or empty."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtransfer.compat.ops import write_gradients

__all__ = [
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each class into ``output`` (N, C); ``target`` (N,) is C where a sample has no class."""
    output.copy_(_sigmoid_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each entry of the loss by its logit into ``grad_input`` (N, C)."""
    ones = torch.ones_like(input)
    write_gradients(lambda x: _sigmoid_focal_loss(x, target, weight, gamma, alpha), [input], ones, [grad_input])


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each sample into ``output`` (N,); ``input`` (N, C) holds probabilities, a target −1 none."""
    output.copy_(_softmax_focal_loss(input, target, weight, gamma, alpha))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each sample's loss by its logits into ``grad_input`` (N, C).

    ``input`` are the probabilities that the softmax made of the logits.
    """
    write_gradients(
        lambda logits: _softmax_focal_loss(logits.softmax(dim=1), target, weight, gamma, alpha),
        # Logits are determined by probabilities up to a constant, which the softmax takes out again.
        [input.clamp(min=torch.finfo(input.dtype).tiny).log()],
        torch.ones_like(target, dtype=input.dtype),
        [grad_input],
    )


def _sigmoid_focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    positive = F.one_hot(target, logits.size(1) + 1)[:, : logits.size(1)].to(logits.dtype)
    p = logits.sigmoid()
    hit = alpha * (1 - p) ** gamma * F.logsigmoid(logits)
    miss = (1 - alpha) * p**gamma * F.logsigmoid(-logits)
    loss = -positive * hit - (1 - positive) * miss
    # A sample without a class has no weight of its own.
    return loss * F.pad(weight, (0, 1), value=1.0)[target][:, None] if weight.numel() else loss


def _softmax_focal_loss(probability: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    counted = target >= 0
    label = target.clamp(min=0)
    p = probability.gather(1, label[:, None])[:, 0].clamp(min=torch.finfo(probability.dtype).tiny)
    loss = -alpha * (1 - p) ** gamma * p.log()
    return torch.where(counted, loss * weight[label] if weight.numel() else loss, 0.0)
