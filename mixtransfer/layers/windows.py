"""Shifted windows by one gather: pad, roll, partition and head split read every row of memory once.

Shapes: B batch, L = H·W tokens, W windows, N = w² tokens a window, h heads, d channels a head. The index tables depend
on sizes only; :func:`window_grid` keeps them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["WindowGrid", "window_grid"]


class WindowGrid:
    """Where each slot of the shifted windows of an (H, W) token grid comes from.

    The grid is padded at the bottom and right to multiples of ``window``, rolled by ``-shift``, and cut into windows
    in row-major order (Liu et al., arXiv 2103.14030, section 3.2).

    Attributes:
        source: (W·N,) token of each slot; the pad slots hold 0.
        slot: (L,) slot of each token.
        pad: (P,) the slots that hold padding.
        mask: (W, 1, N, N) 0, or −inf where two slots of a window are not neighbors in the image; None without shift.
            −inf instead of the customary −100, whose exponential is a denormal number and slows the softmax.
    """

    def __init__(self, height: int, width: int, window: int, shift: int, device: torch.device):
        rows, columns = (-(-side // window) * window for side in (height, width))
        self.windows, self.tokens, self.length = (rows // window) * (columns // window), window * window, height * width

        def cut(x: Tensor) -> Tensor:
            x = x.roll((-shift, -shift), (0, 1)).view(rows // window, window, columns // window, window)
            return x.transpose(1, 2).reshape(-1)

        token = torch.full((rows, columns), -1)
        token[:height, :width] = torch.arange(self.length).view(height, width)
        source = cut(token)
        pad = (source < 0).nonzero().flatten()
        slot = torch.empty(self.length, dtype=torch.long)
        real = (source >= 0).nonzero().flatten()
        slot[source[real]] = real
        self.source, self.slot = source.clamp(min=0).to(device), slot.to(device)
        self.pad = pad.to(device) if len(pad) else None
        self.mask = None
        if shift:
            # Slots are neighbors when the roll carried both, or neither, across the border, per axis.
            y, x = (torch.arange(side).ge(side - shift) for side in (rows, columns))
            unrolled = (y.long().roll(shift)[:, None] * 2 + x.long().roll(shift)[None, :]).view(rows, columns)
            region = cut(unrolled).view(self.windows, self.tokens)
            differ = region[:, :, None] != region[:, None, :]
            self.mask = torch.zeros(differ.shape).masked_fill_(differ, -torch.inf).unsqueeze(1).to(device)
        self._rows: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    @torch.compiler.assume_constant_result
    def rows(self, batch: int, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return row tables of a (B, L, 3·h·d) qkv tensor seen as rows of d, and of the (B, W, h, N, d) output.

        In order: source row of each row of (3, B, W, h, N), its inverse, source row of each (B, L, h), its inverse,
        then the rows of (3, B, W, h, N) that are padding and the row of the (3·h, d) bias that each holds.
        The inverse of a table with padding sends only real rows.
        """
        key = (batch, heads)
        if key not in self._rows:
            self._rows[key] = self._make_rows(batch, heads)
        return self._rows[key]

    def _make_rows(self, batch: int, heads: int):
        device = self.source.device
        b, c, h = (torch.arange(n, device=device) for n in (batch, 3, heads))
        source = self.source.view(1, 1, self.windows, 1, self.tokens)
        b5, c5, h5 = b.view(1, -1, 1, 1, 1), c.view(-1, 1, 1, 1, 1), h.view(1, 1, 1, -1, 1)
        split = (((b5 * self.length + source) * 3 + c5) * heads + h5).flatten()
        # Row of window layout (c, b, window, h, n) that holds token t of image b.
        window, inner = self.slot // self.tokens, self.slot % self.tokens
        place = (b.view(-1, 1, 1) * self.windows + window.view(1, -1, 1)) * heads
        merge = (place + h.view(1, 1, -1)) * self.tokens + inner.view(1, -1, 1)  # (B, L, h)
        part = batch * self.windows * heads * self.tokens
        unsplit = (c.view(1, 1, -1, 1) * part + merge.unsqueeze(2)).flatten()  # (B, L, 3, h)
        unmerge = ((b5[0] * self.length + source[0]) * heads + h5[0]).flatten()  # (B, W, h, N)
        pad = bias = None
        if self.pad is not None:
            holds = torch.zeros(self.windows * self.tokens, dtype=torch.bool, device=device)
            holds[self.pad] = True
            holds = holds.view(1, 1, self.windows, 1, self.tokens).expand(3, batch, -1, heads, -1)
            pad = holds.flatten().nonzero().flatten()
            bias = (c5 * heads + h5).expand(3, batch, self.windows, heads, self.tokens).flatten()[pad]
        tables = (split, unsplit, merge.flatten(), unmerge, pad, bias)
        return tuple(None if table is None else table.int() for table in tables)

    def split(self, qkv: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cut qkv (B, L, 3·h·d) into windows and heads: q, k, v, each (B·W, h, N, d); padding holds ``bias``."""
        batch, _, channels = qkv.shape
        width = channels // (3 * heads)
        split, unsplit, _, _, pad, pad_bias = self.rows(batch, heads)
        bias = bias.to(qkv.dtype).view(3 * heads, width)
        rows = _GatherRows.apply(qkv.reshape(-1, width), bias, split, unsplit, pad, pad_bias)
        return rows.view(3, batch * self.windows, heads, self.tokens, width).unbind(0)

    def merge(self, out: Tensor) -> Tensor:
        """Put window outputs (B·W, h, N, d) back into the token grid (B, L, h·d), dropping the padding."""
        groups, heads, tokens, width = out.shape
        batch = groups // self.windows
        if out.transpose(1, 2).is_contiguous():
            # The fused kernels write the heads of a token side by side: whole tokens can be moved.
            heads, width = 1, heads * width
            out = out.transpose(1, 2)
        _, _, merge, unmerge, pad, _ = self.rows(batch, heads)
        lost = None if pad is None else pad[: len(pad) // 3]
        rows = _GatherRows.apply(out.reshape(-1, width), None, merge, unmerge, lost, None)
        return rows.view(batch, self.length, heads * width)

    def cut_labels(self, labels: Tensor) -> Tensor:
        """Cut label rows (B, L, K) into windows (B·W, N, K); padding has no label."""
        rows = labels[:, self.source]
        if self.pad is not None:
            rows[:, self.pad] = 0
        return rows.view(-1, self.tokens, labels.size(-1))

    def valid(self, batch: int, like: Tensor) -> Tensor | None:
        """Return 1 for slots that hold a token and 0 for padding, (B·W, N, 1), or None where nothing is padded."""
        if self.pad is None:
            return None
        valid = like.new_ones(self.windows * self.tokens)
        valid[self.pad] = 0
        return valid.view(1, self.windows, self.tokens, 1).expand(batch, -1, -1, -1).flatten(0, 1)

    def merge_labels(self, rows: Tensor) -> Tensor:
        """Put windowed label rows (B·W, N, K) back into the grid (B, L, K)."""
        return rows.reshape(-1, self.windows * self.tokens, rows.size(-1))[:, self.slot]


@torch.compiler.assume_constant_result
def window_grid(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowGrid:
    """Return the tables of a token grid, made once per size and device; constants to a compiled graph."""
    return _window_grid(height, width, window, shift, device)


_window_grid = lru_cache(maxsize=64)(WindowGrid)


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
