"""Regions: which part of an image comes from its partner.

A region *draws* (the only place of randomness) and *applies* a draw to images (pure). All three here make one choice
for the whole batch, as their papers' code does; the partner of image i is image B − 1 − i. The regions of other papers
have files of their own.

Shapes: B batch, H × W image, h × w grid of tokens.

Mixup: Zhang et al., arXiv 1710.09412. CutMix: Yun et al., arXiv 1905.04899. Box on the token grid: Xiao et al.,
"Token-Label Alignment for Vision Transformers", arXiv 2210.06455; code Euphoria16/TL-Align.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import Draw, EvenDraw, PendingDraw, PixelDraw, draw_beta, flip_partner, own_share
from mixtransfer.registry import MODELS, build

__all__ = ["Box", "RandomChoice", "Region", "TokenBox", "WholeImage", "box_at", "draw_cell", "mixup_or"]


class Region:
    """Base of all regions.

    Attributes:
        needs: names of the evidence about the unmixed images that its draws wait for.
        hard_mask: True when a pixel comes from one image alone, so that a map of labels can be pasted with it.
        keeps_places: False when the partner's pixels are moved or resized, so that labels would have to be as well.
    """

    needs: tuple[str, ...] = ()
    hard_mask: bool = True
    keeps_places: bool = True

    def draw(self, shape: tuple[int, ...], grid: tuple[int, int], generator: torch.Generator) -> Draw | PendingDraw:
        """Choose partner and region for images of ``shape`` (B, C, H, W) whose tokens form ``grid`` (h, w).

        A region with ``needs`` returns its random part alone; :meth:`~mixtransfer.mixing.draws.PendingDraw.resolve`
        returns the draw once the evidence is there.
        """
        raise NotImplementedError

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the mixed images (B, C, H, W); ``images`` itself if the draw takes nothing from a partner."""
        return draw.mix(images)


class _BetaRegion(Region):
    def __init__(self, alpha: float = 1.0):
        if alpha <= 0:
            raise UserError(f"{type(self).__name__}: alpha={alpha}; give a number above 0")
        self.alpha = alpha


@MODELS.register_module()
class WholeImage(_BetaRegion):
    """Mixup: every pixel is λ of its own image and 1 − λ of the partner.

    Args:
        alpha: λ is drawn from Beta(alpha, alpha).
    """

    hard_mask = False

    @override
    def draw(self, shape, grid, generator):
        lam = draw_beta(self.alpha, generator)
        mask = torch.full((1, *grid), 1 - lam, dtype=torch.float64)
        return EvenDraw(flip_partner(shape[0]), mask, torch.full((shape[0],), lam, dtype=torch.float64))


@MODELS.register_module()
class Box(_BetaRegion):
    """CutMix: a box of pixels, clipped at the image's border, comes from the partner (as timm and torchvision do it).

    Args:
        alpha: λ is drawn from Beta(alpha, alpha); the box's sides are sqrt(1 − λ) of the image's before clipping.
    """

    @override
    def draw(self, shape, grid, generator):
        size = shape[-2], shape[-1]
        pixel_mask = _box_mask(size, draw_beta(self.alpha, generator), draw_cell(size, generator))
        mask = F.interpolate(pixel_mask[:, None].double(), grid, mode="area")[:, 0]
        return PixelDraw(flip_partner(shape[0]), mask, own_share(pixel_mask, shape[0]), pixel_mask)


@MODELS.register_module()
class TokenBox(_BetaRegion):
    """TL-Align: a box of whole tokens comes from the partner.

    As published, the sides are even numbers of tokens before clipping and a side of one token is none, so that some
    draws leave the batch unmixed; small grids suffer most (on 14 × 14 tokens 2% of the draws, on 4 × 4 a quarter).

    Args:
        alpha: λ is drawn from Beta(alpha, alpha).
    """

    @override
    def draw(self, shape, grid, generator):
        return self.draw_at(shape[0], grid, draw_beta(self.alpha, generator), draw_cell(grid, generator))

    def draw_at(self, batch: int, grid: tuple[int, int], lam: float, center: tuple[int, int]) -> Draw:
        """Return the draw that follows from λ and the box's center (row, column) in tokens."""
        mask = _box_mask(grid, lam, center)
        return Draw(flip_partner(batch), mask, own_share(mask, batch))


@MODELS.register_module()
class RandomChoice(Region):
    """One of several regions, drawn anew in each step.

    Args:
        regions: configs or instances of regions.
        weights: relative frequencies of the regions; equal by default.

    Raises:
        UserError: weights that are negative, all 0, or not one for each region.
    """

    def __init__(self, regions: Sequence[Mapping[str, Any] | Region], weights: Sequence[float] | None = None):
        self.regions = [build(region, Region) for region in regions]
        self.weights = tuple(weights or [1.0] * len(self.regions))
        if len(self.weights) != len(self.regions) or min(self.weights) < 0 or sum(self.weights) == 0:
            raise UserError(
                f"RandomChoice: weights={weights}; give each of {len(self.regions)} regions a number from 0 up"
            )
        self.needs = tuple(dict.fromkeys(need for region in self.regions for need in region.needs))
        self.hard_mask = all(region.hard_mask for region in self.regions)
        self.keeps_places = all(region.keeps_places for region in self.regions)

    @override
    def draw(self, shape, grid, generator):
        chosen = int(torch.multinomial(torch.tensor(self.weights).double(), 1, generator=generator))
        return self.regions[chosen].draw(shape, grid, generator)


def mixup_or(region: Region, alpha: float, switch_prob: float) -> RandomChoice:
    """Return the switch between Mixup with ``alpha`` and, with probability ``switch_prob``, another region.

    Raises:
        UserError: ``switch_prob`` is no probability.
    """
    if not 0 <= switch_prob <= 1:
        raise UserError(f"switch_prob={switch_prob}; give a probability from 0 to 1")
    return RandomChoice([WholeImage(alpha), region], [1 - switch_prob, switch_prob])


def box_at(size: tuple[int, int], lam: float, center: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a box around ``center`` (row, column) with sides sqrt(1 − λ)·``size``.

    The box is clipped to ``size``; ends are exclusive.
    """
    ends = []
    for side, middle in zip(size, center, strict=True):
        half = int(side * np.sqrt(1 - lam)) // 2
        ends.append((max(middle - half, 0), min(middle + half, side)))
    (top, bottom), (left, right) = ends
    return top, bottom, left, right


def draw_cell(size: tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
    """Return a place (row, column) on a grid of ``size``, drawn evenly."""
    row, column = (int(torch.randint(side, (), generator=generator)) for side in size)
    return row, column


def _box_mask(size: tuple[int, int], lam: float, center: tuple[int, int]) -> Tensor:
    top, bottom, left, right = box_at(size, lam, center)
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask
