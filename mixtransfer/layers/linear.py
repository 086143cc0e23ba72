"""Linear layers of token maps, and the MLP made of two of them; parameters are named as timm names them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PIECE", "Linear", "Mlp", "gelu", "in_parts", "linear", "piecewise"]

#: Rows from which on oneDNN's product is the faster one, in evaluation and in training. Below, its reordering of the
#: weights weighs more than what the threads win.
MANY, MANY_IN_TRAINING = 1024, 1536
#: Hidden values of a piece of tokens, 4 MB in float32; fewer than three pieces are not worth the cut.
PIECE = 2**20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b over the last axis: (…, C) -> (…, D) for a weight (D, C).

    On CPU in float32 many rows go through a pointwise convolution: the same product by oneDNN, whose threads share it
    better than MKL's. On two cores, Swin-T at 512² then takes 0.88 of the time in evaluation and 0.91 in training.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    rows, (out_width, width) = x[..., 0].numel(), weight.shape
    if torch.is_grad_enabled():
        # The backward pass is slower than MKL's for odd numbers of rows, and for widths like 80 or 112.
        gains = rows >= MANY_IN_TRAINING and not (rows % 2 or width % 32 or out_width % 32)
    else:
        gains = rows >= MANY
    # On one thread torch does not ask oneDNN.
    if not gains or torch.get_num_threads() == 1:
        return F.linear(x, weight, bias)
    tokens = x.reshape(1, -1, 1, x.size(-1)).permute(0, 3, 1, 2)
    out = F.conv2d(tokens, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def piecewise(function: Callable[[Tensor], Tensor], x: Tensor, hidden: int) -> Tensor:
    """Return ``function(x)`` for a function of single tokens, (…, C) -> (…, D), that widens them to ``hidden`` between.

    On CPU without gradient it runs on some thousand tokens at a time: the hidden values of a whole map would go to
    memory and back, into pages that the system first has to provide. An MLP on 16384 tokens of 96 channels takes 0.6
    of the time.
    """
    if not in_parts(x, x[..., 0].numel() * hidden):
        return function(x)
    pieces = x.reshape(-1, x.size(-1)).split(max(PIECE // hidden, MANY))
    return torch.cat([function(piece) for piece in pieces]).unflatten(0, x.shape[:-1])


def gelu(x: Tensor) -> Tensor:
    """Return GELU(x) of a tensor that nobody else reads: without gradient in its place.

    On CPU another tensor of the size would come from pages that the system first has to provide. The MLPs of Swin-T's
    first two stages at 512² take 0.8 to 0.9 of the time.
    """
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def in_parts(x: Tensor, hidden: int) -> bool:
    """Return whether a map ``x`` is better widened to ``hidden`` values in parts."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    return hidden > 3 * PIECE


class Linear(nn.Linear):
    """``nn.Linear`` computed by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, C)."""
        return linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Linear, GELU, linear over the last axis of (…, C)."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.fc2 = Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C)."""
        return piecewise(self.rows, x, self.fc1.out_features)

    def rows(self, x: Tensor) -> Tensor:
        """Return the same for tokens that are few, or that need a gradient."""
        return self.fc2(gelu(self.fc1(x)))
