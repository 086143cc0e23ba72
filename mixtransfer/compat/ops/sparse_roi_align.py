"""RoIAlign on CPU as a sparse matrix of bins × pixels, applied by :func:`torch.nn.functional.embedding_bag`.

A bin is a weighted sum of pixels, the weights being products of those of its rows and of its columns. torchvision's
kernel goes through the samples of every bin and channel on its own, its backward pass on one thread. Here each pixel
that a bin touches counts once, whatever the number of samples, and rows of channels-last maps are summed by all
threads: the forward pass with the matrix, the backward pass with its transpose.

Shapes: R regions, PH × PW bins each, B images, C channels, H × W the map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BinMatrix"]

#: Samples of the longest region a bin, times regions and bins, up to which the matrix is made: 16 MB of places.
MOST_SAMPLES = 1 << 22


class BinMatrix(NamedTuple):
    """The means of bins (R · PH · PW) as sums over pixels (B · H · W), in compressed rows.

    Attributes:
        pixels: the pixels of all bins, one bin after the other.
        weights: their weights.
        starts: where each bin's pixels begin.
    """

    pixels: Tensor
    weights: Tensor
    starts: Tensor

    @classmethod
    def of(
        cls,
        rois: Tensor,
        size: tuple[int, int],
        bins: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool,
    ) -> BinMatrix | None:
        """Return the matrix of ``rois`` (R, 5) on maps of ``size``; None where it would need too many samples.

        The arguments are those of :func:`mixtransfer.compat.ops.regions.roi_align_forward`. Sums are written in
        torchvision's order, so that a sample at the border falls on the same side of it.
        """
        (height, width), (rows, columns) = size, bins
        corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
        starts, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
        if not aligned:
            sides = sides.clamp(min=1)
        y = _axis(starts[:, 1], sides[:, 1], rows, height, sampling_ratio)
        x = _axis(starts[:, 0], sides[:, 0], columns, width, sampling_ratio)
        if y is None or x is None:
            return None
        # A row of a bin is a run of pixels; so first the rows of all bins are listed, then their pixels.
        of_row, row = _runs(y.counts[:, :, None].expand(-1, -1, columns).reshape(-1))
        region, down, across = of_row // (rows * columns), of_row // columns % rows, of_row % columns
        first = (rois[region, 0].long() * height + y.first[region, down] + row) * width + x.first[region, across]
        lengths = x.counts[region, across]
        of_pixel, column = _runs(lengths)
        by_row = y.weights[region, down, row]
        weights = by_row[of_pixel] * x.weights[region, across].flatten()[of_pixel * x.weights.size(2) + column]
        counts = (y.counts[:, :, None] * x.counts[:, None, :]).flatten()
        return cls(first[of_pixel] + column, weights, counts.cumsum(0) - counts)

    def means(self, input: Tensor) -> Tensor:
        """Return the means (R · PH · PW, C) of maps (B, C, H, W)."""
        table = input.permute(0, 2, 3, 1).flatten(0, 2)
        return F.embedding_bag(self.pixels, table, self.starts, mode="sum", per_sample_weights=self.weights)

    def gradient(self, grad: Tensor, pixels: int) -> Tensor:
        """Return the gradient (B · H · W, C) of maps of so many pixels for that of the means (R · PH · PW, C)."""
        order = self.pixels.argsort(stable=True)
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.pixels)])])
        bins = torch.arange(len(self.starts)).repeat_interleave(ends - self.starts)
        counts = self.pixels.bincount(minlength=pixels)
        return F.embedding_bag(
            bins[order], grad, counts.cumsum(0) - counts, mode="sum", per_sample_weights=self.weights[order]
        )


class _Axis(NamedTuple):
    """The pixels of bins along an axis: the first (R, P), how many (R, P), and their weights (R, P, most)."""

    first: Tensor
    counts: Tensor
    weights: Tensor


def _axis(start: Tensor, side: Tensor, bins: int, pixels: int, sampling_ratio: int) -> _Axis | None:
    """Return the weights of pixels in the bins of regions that begin at ``start`` (R,) and have these sides (R,)."""
    step = (side / bins)[:, None, None]
    # A region without extent has no samples.
    samples = torch.full_like(side, sampling_ratio) if sampling_ratio > 0 else (side / bins).ceil().clamp(min=0)
    longest = float(samples.max()) if len(samples) else 0.0
    if not longest * bins * len(samples) <= MOST_SAMPLES:
        return None
    most = int(longest)
    number = torch.arange(most, dtype=side.dtype)
    count = samples[:, None, None]
    bin_ = torch.arange(bins, dtype=side.dtype)[:, None]
    places = start[:, None, None] + bin_ * step + (number + 0.5) * step / count.clamp(min=1)
    counted = (number < count) & (places >= -1) & (places <= pixels)
    places = places.clamp(min=0, max=pixels - 1)
    low = places.long()
    part = places - low
    high = torch.where(part > 0, low + 1, low)
    first = low.masked_fill(~counted, pixels).amin(2) if most else low.new_full((len(side), bins), pixels)
    last = high.masked_fill(~counted, -1).amax(2) if most else low.new_full((len(side), bins), -1)
    counts = (last - first + 1).clamp(min=0)
    weights = start.new_zeros(len(side), bins, max(int(counts.max()) if counts.numel() else 0, 1))
    share = counted / count.clamp(min=1)
    for place, weight in ((low, 1 - part), (high, part)):
        weights.scatter_add_(2, (place - first[:, :, None]).masked_fill(~counted, 0), weight * share)
    return _Axis(first, counts, weights)


def _runs(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every element of runs of these lengths, the number of its run and its place there."""
    run = torch.arange(len(lengths)).repeat_interleave(lengths)
    return run, torch.arange(len(run)) - (lengths.cumsum(0) - lengths)[run]
