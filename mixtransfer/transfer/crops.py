"""Parts of an image by their tight boxes: instances as they are painted and cut, and the regions that cut them.

An instance covers a small part of its image, so its pixels are looked for once and everything after that happens
inside of its box. All of it is NumPy on the CPU.

Shapes: H × W image, h × w tight box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtransfer.mixing.draws import Draw
from mixtransfer.mixing.regions import Region

__all__ = ["Crop", "draw_regions", "window"]


@dataclass(frozen=True)
class Crop:
    """Pixels of an image.

    Attributes:
        top: first row.
        bottom: the row after the last.
        left: first column.
        right: the column after the last.
        pixels: (h, w) bool, those that count; None if all of them do.
        count: how many count.
    """

    top: int
    bottom: int
    left: int
    right: int
    pixels: np.ndarray | None
    count: int

    @classmethod
    def rectangle(cls, top: int, bottom: int, left: int, right: int) -> Crop:
        """Return all pixels of a box; none if it ends before it begins."""
        bottom, right = max(bottom, top), max(right, left)
        return cls(top, bottom, left, right, None, (bottom - top) * (right - left))

    @classmethod
    def of(cls, mask: np.ndarray) -> Crop:
        """Return the pixels of a mask (H, W) that are not 0, by their tight box."""
        if mask.dtype.kind == "f":
            mask = mask != 0
        # Bytes are reduced many at a time, truth values one by one.
        mask = mask.view(np.uint8) if mask.dtype == bool else mask
        columns = np.bitwise_or.reduce(mask, axis=0)
        found = np.flatnonzero(columns)
        if not len(found):
            return cls.rectangle(0, 0, 0, 0)
        left, right = int(found[0]), int(found[-1]) + 1
        rows = np.flatnonzero(mask[:, left:right].max(axis=1))
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        pixels = mask[top:bottom, left:right] != 0
        count = int(np.count_nonzero(pixels))
        return cls(top, bottom, left, right, None if count == pixels.size else pixels, count)

    @property
    def area(self) -> tuple[slice, slice]:
        """Rows and columns of the box."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def paint(self, canvas: np.ndarray, value: int) -> None:
        """Write a value into the pixels of a canvas (H, W), which may be smaller than the image."""
        part = canvas[self.area]
        if self.pixels is None:
            part[...] = value
        else:
            # value where there is a pixel: unsigned numbers wrap around, and a copy "where" takes three times as long.
            part = part.view(np.uint8) if part.dtype == bool else part
            change = np.subtract(part.dtype.type(value), part)
            change *= self.pixels[: part.shape[0], : part.shape[1]].view(np.uint8)
            part += change

    def paste(self, canvas: np.ndarray, other: np.ndarray) -> None:
        """Replace the pixels of a canvas (H, W) by those of another one."""
        if self.pixels is None:
            canvas[self.area] = other[self.area]
        else:
            np.copyto(canvas[self.area], other[self.area], where=self.pixels)

    def inside(self, region: Crop) -> Crop:
        """Return the pixels that a region has as well."""
        top, left = max(self.top, region.top), max(self.left, region.left)
        bottom, right = min(self.bottom, region.bottom), min(self.right, region.right)
        if top >= bottom or left >= right:
            return Crop.rectangle(0, 0, 0, 0)
        if self.pixels is None and region.pixels is None:
            return Crop.rectangle(top, bottom, left, right)
        parts = [
            crop.pixels[top - crop.top : bottom - crop.top, left - crop.left : right - crop.left]
            for crop in (self, region)
            if crop.pixels is not None
        ]
        return _tight(top, left, parts[0] if len(parts) == 1 else parts[0] & parts[1])

    def outside(self, region: Crop) -> Crop:
        """Return the pixels that a region has not; the same ones if it has none of them."""
        top, left = max(self.top, region.top), max(self.left, region.left)
        bottom, right = min(self.bottom, region.bottom), min(self.right, region.right)
        if top >= bottom or left >= right:
            return self
        shape = self.bottom - self.top, self.right - self.left
        rest = np.ones(shape, dtype=bool) if self.pixels is None else self.pixels.copy()
        covered = rest[top - self.top : bottom - self.top, left - self.left : right - self.left]
        if region.pixels is None:
            covered[...] = False
        else:
            covered &= ~region.pixels[top - region.top : bottom - region.top, left - region.left : right - region.left]
        return _tight(self.top, self.left, rest)


def _tight(top: int, left: int, pixels: np.ndarray) -> Crop:
    """Return the pixels of a box that begins at ``top`` and ``left``, by their own tight box."""
    crop = Crop.of(pixels)
    if not crop.count:
        return crop
    return Crop(top + crop.top, top + crop.bottom, left + crop.left, left + crop.right, crop.pixels, crop.count)


def window(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the pixels (top, bottom, left, right) that a box (x1, y1, x2, y2) touches in an image of ``size``."""
    top, left = max(math.floor(box[1]), 0), max(math.floor(box[0]), 0)
    return top, min(math.ceil(box[3]), size[0]), left, min(math.ceil(box[2]), size[1])


def draw_regions(
    region: Region,
    cell_size: int,
    valid: Sequence[tuple[int, int]],
    generator: torch.Generator,
    evidence: Sequence[Mapping[str, Tensor]] | None = None,
) -> list[Crop]:
    """Draw a region for every image.

    Args:
        region: one whose ``hard_mask`` and ``keeps_places`` are True.
        cell_size: side of the cells of the grid that the region is drawn on, in pixels.
        valid: height and width that image and partner have in common; regions stay inside.
        generator: source of the draws.
        evidence: for a region that needs the partner's ground truth, that of every image; maps (…, H, W) on the CPU.
    """
    drawn = []
    for (height, width), truth in zip(valid, evidence or [{}] * len(valid), strict=True):
        grid = math.ceil(height / cell_size), math.ceil(width / cell_size)
        whole = grid[0] * cell_size, grid[1] * cell_size
        fitted = {name: _fit(value[..., :height, :width], whole) for name, value in truth.items()}
        draw = region.draw((1, 3, *whole), grid, generator).resolve(fitted)
        # Cells that are looked at before they become pixels are few.
        by_cell = type(draw).pixels is Draw.pixels
        crop = Crop.of((draw.mask if by_cell else draw.pixels(whole))[0].numpy())
        side = cell_size if by_cell else 1
        pixels = None if crop.pixels is None else crop.pixels.repeat(side, axis=0).repeat(side, axis=1)
        top, left = crop.top * side, crop.left * side
        bottom, right = min(crop.bottom * side, height), min(crop.right * side, width)
        if pixels is None:
            drawn.append(Crop.rectangle(top, bottom, left, right))
        else:
            drawn.append(_tight(top, left, pixels[: max(bottom - top, 0), : max(right - left, 0)]))
    return drawn


def _fit(truth: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ground truth padded to a size by nothing: no mask, no class."""
    rows, columns = size[0] - truth.shape[-2], size[1] - truth.shape[-1]
    return F.pad(truth, (0, columns, 0, rows), value=0 if truth.dtype == torch.bool else -1)
