"""What the published codes share: masks of stochastic depth, attention maps that are made, windows that are copied."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.layers.linear import Linear, Mlp

__all__ = [
    "COMMON",
    "Summed",
    "attend",
    "convolve",
    "drop_path",
    "from_windows",
    "gather_bias",
    "join_heads",
    "split_heads",
    "to_windows",
]


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Return a branch that was computed for all samples, divided by what is kept and multiplied by each one's mask."""
    if not training or rate == 0:
        return branch
    kept = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - rate)
    return branch.div(1 - rate) * kept


class Summed:
    """A block that adds its branches with :func:`drop_path`, at the rate ``self.drop_path``."""

    drop_path: float
    training: bool

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return x + branch with stochastic depth."""
        return x + drop_path(branch, self.drop_path, self.training)


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a map (B, C, H, W), whichever layout the class of ``layer`` takes."""
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split tokens (B, N, parts·h·d) into ``parts`` tensors (B, h, N, d)."""
    return x.reshape(*x.shape[:2], parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor) -> Tensor:
    """Join heads (B, h, N, d) to tokens (B, N, h·d)."""
    return x.transpose(1, 2).reshape(len(x), x.size(2), -1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / √d + bias) v by way of the map (…, N, M), scaled after the product."""
    scores = (q @ k.transpose(-2, -1)) * q.size(-1) ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ v


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """Read a relative-position table ((2w−1)², h) for each pair of a window: (h, N, N)."""
    return table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1).contiguous()


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut a map (B, H, W, C) into windows (B·W, w², C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, channels)


def from_windows(windows: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Put windows (B·W, w², C) back into a map (B, H, W, C) of ``size``."""
    rows, columns = size[0] // window, size[1] // window
    x = windows.view(-1, rows, columns, window, window, windows.size(-1))
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(len(x), *size, -1)


class PlainLinear(Linear):
    """A matrix product by torch's choice."""

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class PlainMlp(Mlp):
    """All tokens at once."""

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


#: Our class -> the published way, in all families.
COMMON = {Linear: PlainLinear, Mlp: PlainMlp}
