"""The initializations that most published vision networks share; timm draws the same values from the same seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["init_linear", "lecun_normal_", "trunc_normal_"]

BOUND = 2.0
#: Standard deviation of a standard normal that is cut at ±2.
CUT_STD = 0.87962566103423978


def init_linear(module: nn.Module, std: float = 0.02) -> None:
    """Draw a linear layer's weight from a truncated normal and zero its bias; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def trunc_normal_(tensor: Tensor, std: float = 1.0) -> Tensor:
    """Fill with normal values of mean 0 between −2 and 2, and return the tensor.

    Uniform draws go through the inverse of the normal distribution: torch's own function draws again what lies outside,
    and would not end on a tensor that :func:`~mixtransfer.checkpoints.verify.build_without_values` leaves unfilled.
    """
    if tensor.is_meta:
        return tensor  # nothing to fill, for which torch would import its compiler
    inside = math.erf(BOUND / (std * math.sqrt(2)))
    return tensor.uniform_(-inside, inside).erfinv_().mul_(std * math.sqrt(2)).clamp_(-BOUND, BOUND)


@torch.no_grad()
def lecun_normal_(weight: Tensor) -> Tensor:
    """Fill a weight (D, …) with truncated normal values of variance 1 / fan-in, and return it."""
    return trunc_normal_(weight).mul_(math.sqrt(1 / weight[0].numel()) / CUT_STD)
