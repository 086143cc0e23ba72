"""Features of regions of interest: (R, 5), a batch index and x1, y1, x2, y2 in pixels of the image.

Shapes: B batch, C channels, H × W map, PH × PW bins a region.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mixtransfer.compat.ops import at_least_float32, write_gradients
from mixtransfer.compat.ops.sparse_roi_align import BinMatrix
from mixtransfer.progress import notice

__all__ = [
    "deform_roi_pool_backward",
    "deform_roi_pool_forward",
    "roi_align_backward",
    "roi_align_forward",
    "roi_pool_backward",
    "roi_pool_forward",
]

#: Channels below which the arithmetic of RoIAlign's matrix costs more than its sums.
FEW_CHANNELS = 16


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the means of ``input`` (B, C, H, W) over the bins of ``rois`` into ``output`` (R, C, PH, PW).

    ``spatial_scale`` turns pixels of the image into pixels of the map. Each bin is the mean of ``sampling_ratio``
    squared bilinear samples, or of about one a pixel if that is 0 (RoIAlign of Mask R-CNN, arXiv 1703.06870,
    section 3). ``aligned`` puts the center of pixel (0, 0) at (0.5, 0.5) instead of (0, 0), as detectron2 does.

    With ``pool_mode`` 0 each bin is the largest of its samples.
    """
    if pool_mode == 0:
        for number, roi in enumerate(rois):
            start, sides = _extent(roi, spatial_scale, 0.5 if aligned else 0.0)
            y, x = _samples(start, sides if aligned else sides.clamp(min=1), output.shape[2:], sampling_ratio)
            if not y.numel():
                continue  # a region without area has no sample, and stays 0
            best, where = bilinear(input[int(roi[0])], y, x).flatten(3).max(dim=-1)
            output[number] = best
            for target, places in ((argmax_y, y), (argmax_x, x)):
                target[number] = places.flatten(2).expand(len(best), -1, -1, -1).gather(3, where[..., None])[..., 0]
        return
    dtype = at_least_float32(input, rois)
    bins = (aligned_height, aligned_width)
    if (matrix := _bin_matrix(input, rois.to(dtype), bins, spatial_scale, sampling_ratio, aligned)) is not None:
        output.copy_(matrix.means(input.to(dtype)).view(len(rois), *bins, input.size(1)).permute(0, 3, 1, 2))
        return
    output.copy_(
        torch.ops.torchvision.roi_align(input.to(dtype), rois.to(dtype), spatial_scale, *bins, sampling_ratio, aligned)
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write into ``grad_input`` (B, C, H, W) the gradient of :func:`roi_align_forward` for ``grad_output``.

    A mean's gradient needs the map's shape alone. That of a maximum needs the places of the maxima, for which
    ``argmax_y`` and ``argmax_x`` keep row and column in the map.
    """
    if pool_mode == 0:
        with torch.enable_grad():
            map_ = torch.zeros_like(grad_input).requires_grad_()
            picked = torch.stack(
                [
                    bilinear(map_[int(roi[0])], argmax_y[number], argmax_x[number], each_channel=True)
                    for number, roi in enumerate(rois)
                ]
            )
            (grad,) = torch.autograd.grad(picked, map_, grad_output)
        grad_input.copy_(grad)
        return
    dtype = at_least_float32(grad_output, rois)
    bins = (aligned_height, aligned_width)
    if (matrix := _bin_matrix(grad_input, rois.to(dtype), bins, spatial_scale, sampling_ratio, aligned)) is not None:
        batch, channels, height, width = grad_input.shape
        rows = grad_output.to(dtype).permute(0, 2, 3, 1).reshape(-1, channels)
        grad = matrix.gradient(rows, batch * height * width)
        grad_input.copy_(grad.view(batch, height, width, channels).permute(0, 3, 1, 2))
        return
    # A GPU adds the gradients up in no fixed order, and torchvision's kernel does not say so.
    device = grad_output.device
    if torch.are_deterministic_algorithms_enabled() and device.type != "cpu":
        device = torch.device("cpu")
        _say_slow()
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output.to(device, dtype),
        rois.to(device, dtype),
        spatial_scale,
        *bins,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(grad)


@functools.cache
def _say_slow() -> None:
    notice("--deterministic: RoIAlign's gradient is computed on the CPU, in a fixed order; each step waits for it")


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maxima of ``input`` (B, C, H, W) over the bins of ``rois`` into ``output`` (R, C, PH, PW).

    Bins reach outwards to whole pixels, which a region's last pixel belongs to (Fast R-CNN, arXiv 1504.08083, as mmcv
    computes it: without rounding the region first). ``argmax`` takes the pixel of each maximum, −1 for an empty bin.
    """
    height, width = input.shape[2:]
    flat = input.flatten(2)
    for number, roi in enumerate(rois):
        (batch, x1, y1), ends = roi[:3], (roi[3:] + 1) * spatial_scale
        x1, y1 = x1 * spatial_scale, y1 * spatial_scale
        if ends[0] <= x1 or ends[1] <= y1:
            continue
        rows = _bins(y1, ends[1], pooled_height, height)
        columns = _bins(x1, ends[0], pooled_width, width)
        index, inside = _pixels(rows, columns, width)
        values = flat[int(batch)][:, index].masked_fill(~inside, -torch.inf)
        best, where = values.max(dim=-1)
        empty = ~inside.any(dim=-1)
        output[number] = best.masked_fill(empty, 0.0)
        argmax[number] = index.expand_as(values).gather(-1, where[..., None])[..., 0].masked_fill(empty, -1)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of each maximum to its pixel in ``grad_input`` (B, C, H, W), which is zero before."""
    grads, flat = grad_output.flatten(2), grad_input.view(*grad_input.shape[:2], -1)
    places = argmax.flatten(2).long()
    for number, batch in enumerate(rois[:, 0].long().tolist()):
        counted = places[number] >= 0
        flat[batch].scatter_add_(1, places[number].clamp(min=0), grads[number] * counted)


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the means of ``input`` over the bins of ``rois``, each moved by its offset, into ``output`` (R, C, PH, PW).

    ``offset`` (R, 2, PH, PW), in units of ``gamma`` times the region's sides, x before y, may be empty (deformable
    RoI pooling, arXiv 1703.06211, section 2.2, on samples as RoIAlign takes them).
    """
    output.copy_(_deform_roi_pool(input, rois, offset, output.shape, spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the gradients of :func:`deform_roi_pool_forward` for the map and, where there are any, the offsets."""

    def pool(input: Tensor, offset: Tensor = offset) -> Tensor:
        return _deform_roi_pool(input, rois, offset, grad_output.shape, spatial_scale, sampling_ratio, gamma)

    moved = offset.numel() > 0
    write_gradients(
        pool, [input, offset] if moved else [input], grad_output, [grad_input, grad_offset] if moved else [grad_input]
    )


def _bin_matrix(
    map_: Tensor, rois: Tensor, bins: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> BinMatrix | None:
    """Return the means over bins as a matrix where that is faster than torchvision's kernel: on CPU, many channels."""
    if map_.device.type != "cpu" or map_.size(1) < FEW_CHANNELS:
        return None
    return BinMatrix.of(rois, (map_.size(2), map_.size(3)), bins, spatial_scale, sampling_ratio, aligned)


def _bins(start: Tensor, end: Tensor, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Return the first pixel of each bin and the one after its last, (count,) each."""
    steps = torch.arange(count, device=start.device) * ((end - start) / count) + start
    after = torch.arange(1, count + 1, device=start.device) * ((end - start) / count) + start
    return steps.floor().long().clamp(0, side), after.ceil().long().clamp(0, side)


def _pixels(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Return the pixels of all bins, (PH, PW, n) positions in the flat map, and which of them are inside the bin."""
    grids = []
    for first, after in (rows, columns):
        reach = torch.arange(max(int((after - first).max()), 1), device=first.device)
        places = first[:, None] + reach
        grids.append((places, places < after[:, None]))
    (y, in_y), (x, in_x) = grids
    index = y[:, None, :, None] * width + x[None, :, None, :]
    inside = in_y[:, None, :, None] & in_x[None, :, None, :]
    return index.masked_fill(~inside, 0).flatten(2), inside.flatten(2)


def _extent(roi: Tensor, scale: float, shift: float) -> tuple[Tensor, Tensor]:
    """Return the start and the sides of a region on the map, (2,) each, rows first."""
    start = roi[1:3].flip(0) * scale - shift
    return start, (roi[3:].flip(0) - roi[1:3].flip(0)) * scale


def _samples(start: Tensor, sides: Tensor, bins: tuple[int, int], sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the samples of each bin, (PH, PW, m, n); about one a pixel if the ratio is 0."""
    axes = []
    for axis, count in enumerate(bins):
        samples = sampling_ratio or max(math.ceil(float(sides[axis]) / count), 0)
        steps = (torch.arange(count * samples, device=start.device, dtype=start.dtype) + 0.5) / max(samples, 1)
        axes.append((start[axis] + steps * sides[axis] / count).view(count, samples))
    return torch.broadcast_tensors(axes[0][:, None, :, None], axes[1][None, :, None, :])


def _deform_roi_pool(
    input: Tensor, rois: Tensor, offset: Tensor, shape: torch.Size, scale: float, sampling_ratio: int, gamma: float
) -> Tensor:
    pooled = []
    for number, roi in enumerate(rois):
        start, sides = _extent(roi, scale, 0.5)
        y, x = _samples(start, sides, shape[2:], sampling_ratio)
        if offset.numel():
            x = x + (gamma * sides[1] * offset[number, 0])[..., None, None]
            y = y + (gamma * sides[0] * offset[number, 1])[..., None, None]
        samples = bilinear(input[int(roi[0])], y, x)
        pooled.append(samples.flatten(3).sum(dim=-1) / max(y.size(2) * y.size(3), 1))
    return torch.stack(pooled) if pooled else input.new_zeros(shape)


def bilinear(feature: Tensor, y: Tensor, x: Tensor, each_channel: bool = False) -> Tensor:
    """Return a map (C, H, W) at points: bilinear, the border reaching a pixel beyond it, 0 further out.

    Points (…) are those of all channels, or (C, …) of each its own; the result is (C, …).
    """
    height, width = feature.shape[1:]
    outside = (y < -1) | (y > height) | (x < -1) | (x > width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor().long(), x.detach().floor().long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    dy, dx = y - top, x - left
    flat = feature.flatten(1)

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        places = rows * width + columns
        return flat.gather(1, places.flatten(1)).view_as(places) if each_channel else flat[:, places]

    value = (
        at(top, left) * ((1 - dy) * (1 - dx))
        + at(top, right) * ((1 - dy) * dx)
        + at(bottom, left) * (dy * (1 - dx))
        + at(bottom, right) * (dy * dx)
    )
    return value.masked_fill(outside, 0.0)
