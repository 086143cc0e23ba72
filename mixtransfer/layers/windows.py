"""Shifted windows by one gather: pad, roll, partition and head split read every row of memory once.

Shapes: B batch, L = H·W tokens, W windows, N = w² tokens a window, h heads, d channels a head. The index tables depend
on sizes only and are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixtransfer.layers.channels_last import pad
from mixtransfer.layers.compiling import constant_in_graphs, is_traceable
from mixtransfer.layers.patches import grid_of
from mixtransfer.layers.tables import table

__all__ = ["OffsetWindows", "WindowGrid", "attend_inside"]


@dataclass(frozen=True)
class WindowGrid:
    """The shifted windows of an (H, W) token grid.

    The grid is padded at the bottom and right to multiples of ``window``, rolled by ``-shift``, and cut into windows
    in row-major order (Liu et al., arXiv 2103.14030, section 3.2).
    """

    height: int
    width: int
    window: int
    shift: int
    device: torch.device

    @property
    def key(self) -> tuple[int, int, int, int, torch.device]:
        """The sizes that the tables depend on, as plain values."""
        return self.height, self.width, self.window, self.shift, self.device

    @property
    def windows(self) -> int:
        """Number W of windows of an image."""
        return -(-self.height // self.window) * -(-self.width // self.window)

    @property
    def tokens(self) -> int:
        """Number N of slots of a window."""
        return self.window**2

    @property
    def length(self) -> int:
        """Number L of tokens of an image."""
        return self.height * self.width

    @property
    def mask(self) -> Tensor | None:
        """(W, 1, N, N) 0, or −inf where two slots of a window are not neighbors in the image; None without shift."""
        return _tables(*self.key)[3]

    def split(self, qkv: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cut qkv (B, L, 3·h·d) into windows and heads: q, k, v, each (B·W, h, N, d); padding holds ``bias``."""
        batch, _, channels = qkv.shape
        width = channels // (3 * heads)
        if is_traceable():
            source, _, pad, _ = _tables(*self.key)
            rows = qkv[:, source]
            if pad is not None:
                rows = rows.index_copy(1, pad, bias.to(qkv.dtype).expand(batch, len(pad), -1))
            rows = rows.view(batch, self.windows, self.tokens, 3, heads, width).permute(3, 0, 1, 4, 2, 5)
            q, k, v = rows.reshape(3, batch * self.windows, heads, self.tokens, width).unbind(0)
            return q, k, v
        split, unsplit, _, _, pad, pad_bias = _row_tables(*self.key, batch, heads)
        bias = bias.to(qkv.dtype).view(3 * heads, width)
        rows = _GatherRows.apply(qkv.reshape(-1, width), bias, split, unsplit, pad, pad_bias)
        return rows.view(3, batch * self.windows, heads, self.tokens, width).unbind(0)

    def merge(self, out: Tensor) -> Tensor:
        """Put window outputs (B·W, h, N, d) back into the token grid (B, L, h·d), dropping the padding."""
        groups, heads, _, width = out.shape
        batch = groups // self.windows
        if is_traceable():
            rows = out.transpose(1, 2).reshape(batch, self.windows * self.tokens, heads * width)
            return rows[:, _tables(*self.key)[1]]
        if out.transpose(1, 2).is_contiguous():
            # The fused kernels write the heads of a token side by side: whole tokens can be moved.
            heads, width = 1, heads * width
            out = out.transpose(1, 2)
        _, _, merge, unmerge, pad, _ = _row_tables(*self.key, batch, heads)
        lost = None if pad is None else pad[: len(pad) // 3]
        rows = _GatherRows.apply(out.reshape(-1, width), None, merge, unmerge, lost, None)
        return rows.view(batch, self.length, heads * width)

    def cut_labels(self, labels: Tensor) -> Tensor:
        """Cut label rows (B, L, K) into windows (B·W, N, K); padding has no label."""
        source, _, pad, _ = _tables(*self.key)
        rows = labels[:, source]
        if pad is not None:
            rows[:, pad] = 0
        return rows.view(-1, self.tokens, labels.size(-1))

    def valid(self, batch: int, like: Tensor) -> Tensor | None:
        """Return 1 for slots that hold a token and 0 for padding, (B·W, N, 1), or None where nothing is padded."""
        pad = _tables(*self.key)[2]
        if pad is None:
            return None
        valid = like.new_ones(self.windows * self.tokens)
        valid[pad] = 0
        return valid.view(1, self.windows, self.tokens, 1).expand(batch, -1, -1, -1).flatten(0, 1)

    def merge_labels(self, rows: Tensor) -> Tensor:
        """Put windowed label rows (B·W, N, K) back into the grid (B, L, K)."""
        return rows.reshape(-1, self.windows * self.tokens, rows.size(-1))[:, _tables(*self.key)[1]]


@dataclass(frozen=True)
class OffsetWindows:
    """The windows of a map (H, W) in row-major order, padded on all sides so that they begin at ``shift``.

    With a shift there is one more row and column of windows, each partly padding. Mixing tokens inside them is what
    rolled windows do whose wrapped-around parts are masked.
    """

    size: tuple[int, int]
    window: int
    shift: int = 0

    @property
    def top(self) -> int:
        """Rows of padding in front of the map, and columns."""
        return -self.shift % self.window

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return grid_of((self.size[0] + self.top, self.size[1] + self.top), self.window)

    def cut(self, x: Tensor) -> Tensor:
        """Return the windows (B, W·N, C) of a map (B, H, W, C)."""
        (rows, columns), side = self.grid, self.window
        bottom, right = rows * side - self.size[0] - self.top, columns * side - self.size[1] - self.top
        x = pad(x, bottom, right, self.top, self.top).unflatten(2, (columns, side)).unflatten(1, (rows, side))
        return x.transpose(2, 3).flatten(1, 4)

    def join(self, x: Tensor) -> Tensor:
        """Return the map (B, H, W, C) of windows (B, W·N, C), without the padding."""
        rows, columns = self.grid
        x = x.unflatten(1, (rows, columns, self.window, self.window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, self.top : self.top + self.size[0], self.top : self.top + self.size[1]]

    def valid(self, device: torch.device) -> Tensor | None:
        """Return 1 for tokens and 0 for padding, (W, N); None where nothing is padded."""
        return _valid_slots(self, device)


def attend_inside(
    windows: OffsetWindows,
    attention: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]],
    x: Tensor,
    labels: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Attend inside the windows of a map; padding is zero and takes part, as in ViTDet (arXiv 2203.16527).

    Args:
        windows: those of the map (H, W).
        attention: from tokens (B, N, C) and labels (B, N, K) to new tokens and the labels that each attended to.
        x: tokens (B, H·W, C).
        labels: their labels (B, H·W, K), or None. Padding has none, what a token attended to is divided by the mass
            that it found.
    """

    def cut(rows: Tensor) -> Tensor:
        return windows.cut(rows.unflatten(1, windows.size)).unflatten(1, (-1, windows.window**2)).flatten(0, 1)

    def join(rows: Tensor) -> Tensor:
        return windows.join(rows.unflatten(0, (x.size(0), -1)).flatten(1, 2)).flatten(1, 2)

    if labels is None:
        return join(attention(cut(x), None)[0]), None
    out, attended = attention(cut(x), cut(F.pad(labels, (0, 1), value=1.0)))
    assert attended is not None, "attention returns labels where it gets some"
    attended = join(attended)
    return join(out), attended[..., :-1] / attended[..., -1:]


@table
def _valid_slots(windows: OffsetWindows, device: torch.device) -> Tensor | None:
    if windows.top == 0 and windows.size[0] % windows.window == 0 and windows.size[1] % windows.window == 0:
        return None
    return windows.cut(torch.ones(1, *windows.size, 1, device=device)).view(-1, windows.window**2)


# A compiled graph takes the tables as constants; it cannot trace a cache, and would make them at every step.
@constant_in_graphs
def _tables(*key) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the token of each of the W·N slots (0 for padding), the slot of each token, the pad slots, the mask."""
    return _make_tables(WindowGrid(*key))


@constant_in_graphs
def _row_tables(*key) -> tuple[Tensor | None, ...]:
    """Return row tables of a (B, L, 3·h·d) qkv tensor seen as rows of d, and of the (B, W, h, N, d) output.

    ``key`` is a grid's, then the batch and the number of heads.

    In order: source row of each row of (3, B, W, h, N), its inverse, source row of each (B, L, h), its inverse,
    then the rows of (3, B, W, h, N) that are padding and the row of the (3·h, d) bias that each holds.
    """
    return _make_row_tables(WindowGrid(*key[:-2]), *key[-2:])


@table
def _make_tables(grid: WindowGrid):
    window, shift = grid.window, grid.shift
    rows, columns = (-(-side // window) * window for side in (grid.height, grid.width))

    def cut(x: Tensor) -> Tensor:
        x = x.roll((-shift, -shift), (0, 1)).view(rows // window, window, columns // window, window)
        return x.transpose(1, 2).reshape(-1)

    token = torch.full((rows, columns), -1)
    token[: grid.height, : grid.width] = torch.arange(grid.length).view(grid.height, grid.width)
    source = cut(token)
    pad = (source < 0).nonzero().flatten()
    real = (source >= 0).nonzero().flatten()
    slot = torch.empty(grid.length, dtype=torch.long)
    slot[source[real]] = real
    mask = None
    if shift:
        # Slots are neighbors when the roll carried both, or neither, across the border, per axis.
        y, x = (torch.arange(side).ge(side - shift).long().roll(shift) for side in (rows, columns))
        region = cut(y[:, None] * 2 + x[None, :]).view(grid.windows, grid.tokens)
        differ = region[:, :, None] != region[:, None, :]
        # −100 is customary here, but its exponential is a denormal number and slows the softmax.
        mask = torch.zeros(differ.shape).masked_fill_(differ, -torch.inf).unsqueeze(1).to(grid.device)
    pad = pad.to(grid.device) if len(pad) else None
    return source.clamp(min=0).to(grid.device), slot.to(grid.device), pad, mask


@table
def _make_row_tables(grid: WindowGrid, batch: int, heads: int):
    source, slot, pad_slots, _ = _make_tables(grid)
    windows, tokens, length = grid.windows, grid.tokens, grid.length
    b, c, h = (torch.arange(n, device=source.device) for n in (batch, 3, heads))
    b5, c5, h5 = b.view(1, -1, 1, 1, 1), c.view(-1, 1, 1, 1, 1), h.view(1, 1, 1, -1, 1)
    source = source.view(1, 1, windows, 1, tokens)
    split = (((b5 * length + source) * 3 + c5) * heads + h5).flatten()
    place = (b.view(-1, 1, 1) * windows + (slot // tokens).view(1, -1, 1)) * heads
    merge = (place + h.view(1, 1, -1)) * tokens + (slot % tokens).view(1, -1, 1)  # (B, L, h)
    unsplit = (c.view(1, 1, -1, 1) * (batch * windows * heads * tokens) + merge.unsqueeze(2)).flatten()  # (B, L, 3, h)
    unmerge = ((b5[0] * length + source[0]) * heads + h5[0]).flatten()  # (B, W, h, N)
    pad = bias = None
    if pad_slots is not None:
        holds = torch.zeros(windows * tokens, dtype=torch.bool, device=source.device)
        holds[pad_slots] = True
        holds = holds.view(1, 1, windows, 1, tokens).expand(3, batch, -1, heads, -1)
        pad = holds.flatten().nonzero().flatten()
        bias = (c5 * heads + h5).expand(3, batch, windows, heads, tokens).flatten()[pad]
    tables = (split, unsplit, merge.flatten(), unmerge, pad, bias)
    return tuple(None if table is None else table.int() for table in tables)


class _GatherRows(torch.autograd.Function):
    """Gather rows by a table whose inverse is known, so that the backward pass is a gather too.

    ``pad`` names rows without a source: of the output where ``bias`` is given (they hold row ``pad_bias`` of it), else
    of the input (they are read by nobody and get no gradient).
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, bias: Tensor | None, index: Tensor, inverse: Tensor, pad: Tensor | None, pad_bias
    ) -> Tensor:
        out = rows.index_select(0, index)
        if bias is not None and pad is not None:
            out[pad] = bias[pad_bias]
        ctx.save_for_backward(inverse, pad, pad_bias)
        ctx.bias_shape = None if bias is None else bias.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inverse, pad, pad_bias = ctx.saved_tensors
        grad_rows = grad.contiguous().index_select(0, inverse)
        grad_bias = None
        if ctx.bias_shape is not None:
            grad_bias = grad.new_zeros(ctx.bias_shape)
            if pad is not None:
                grad_bias.index_add_(0, pad_bias, grad[pad])
        elif pad is not None:
            grad_rows[pad] = 0
        return grad_rows, grad_bias, None, None, None, None
