"""Regions: which part of an image comes from its partner.

A region *draws* (the only place of randomness) and *applies* a draw to images (pure). All three here make one choice
for the whole batch, as their papers' code does; the partner of image i is image B − 1 − i. The regions of TokenMix and
SMMix are in files of their own.

Shapes: B batch, H × W image, h × w grid of tokens.

Mixup: Zhang et al., arXiv 1710.09412. CutMix: Yun et al., arXiv 1905.04899. Box on the token grid: Xiao et al.,
"Token-Label Alignment for Vision Transformers", arXiv 2210.06455; code Euphoria16/TL-Align.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtransfer.errors import UserError, unknown_name
from mixtransfer.layers.labels import pool_labels
from mixtransfer.registry import MODELS

__all__ = [
    "Box",
    "Draw",
    "EvenDraw",
    "PixelDraw",
    "Region",
    "TokenBox",
    "WholeImage",
    "box_at",
    "build",
    "draw_beta",
    "flip_partner",
    "no_mix",
    "own_share",
    "step_generator",
]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Draw:
    """What one step mixes; plain CPU data that can be saved and replayed.

    Attributes:
        partner: (B,) int64, the index of the image that each image is mixed with.
        mask: (B or 1, h, w), the share of each token that comes from the partner; bool where that is all or nothing.
        ratio: (B,) float64, the share of each image that is its own.
        parted: whether it cuts a region out; if not, the image is blended evenly and its label goes by ``ratio``.
        needs: names of the evidence that the draw waits for, see :meth:`place`.
    """

    parted: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    partner: Tensor
    mask: Tensor
    ratio: Tensor

    def place(self, evidence: Mapping[str, Tensor]) -> Draw:
        """Return the draw, once the evidence that it waits for is there; most wait for none."""
        return self

    def mix(self, images: Tensor) -> Tensor:
        """Return the mixed images (B, C, H, W); ``images`` itself where nothing comes from a partner."""
        share = self.pixels(tuple(images.shape[-2:]))
        if not share.any():
            return images
        share = share[:, None].to(images.device)
        partner = images[self.partner.to(images.device)]
        if share.dtype == torch.bool:
            return torch.where(share, partner, images)
        share = share.to(images.dtype)
        return images * (1 - share) + partner * share

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """Return the share of each pixel that comes from the partner, (B or 1, H, W), of the mask's dtype."""
        # nearest-exact: "nearest" may round a cell's first pixel into the cell before it.
        return F.interpolate(self.mask[:, None].double(), size, mode="nearest-exact")[:, 0].to(self.mask.dtype)

    def on_grid(self, size: tuple[int, int]) -> Tensor:
        """Return the partner's share of each token of another grid, (B or 1, h, w) float64."""
        return pool_labels(self.mask[:, None].double(), size)[:, 0]

    def label_map(self, images: Tensor) -> Tensor:
        """Return the partner's share of every token as a label map of one channel, (B, 1, h, w), at least float32.

        This is all a backbone has to carry (``token_labels``): labels move linearly, so a token whose aligned share is
        m has the label (1 − m)·Y1 + m·Y2.
        """
        mask = self.mask.to(images.device, torch.promote_types(images.dtype, torch.float32))
        return mask.expand(len(images), -1, -1)[:, None]


@dataclass(frozen=True, eq=False)
class PixelDraw(Draw):
    """A draw whose border may run through tokens.

    Attributes:
        pixel_mask: (B or 1, H, W) bool, the pixels that come from the partner; ``mask`` holds its mean over each token.
    """

    pixel_mask: Tensor

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """Return ``pixel_mask``, drawn for images of this size."""
        assert tuple(self.pixel_mask.shape[-2:]) == tuple(size)
        return self.pixel_mask


@dataclass(frozen=True, eq=False)
class EvenDraw(Draw):
    """A draw that takes the same share from the partner everywhere: Mixup, or a step that does not mix."""

    parted: ClassVar[bool] = False


class Region:
    """Base of all regions.

    Attributes:
        needs: names of the evidence about the unmixed images that its draws wait for.
        whole_pixels: True when a pixel comes from one image alone, so that a map of labels can be pasted with it.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    whole_pixels: ClassVar[bool] = True

    def draw(self, shape: tuple[int, ...], grid: tuple[int, int], generator: torch.Generator) -> Draw:
        """Choose partner and region for images of ``shape`` (B, C, H, W) whose tokens form ``grid`` (h, w)."""
        raise NotImplementedError

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the mixed images (B, C, H, W); ``images`` itself where the draw takes nothing from the partner."""
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

    whole_pixels = False

    def draw(self, shape, grid, generator):  # noqa: D102
        lam = draw_beta(self.alpha, generator)
        mask = torch.full((1, *grid), 1 - lam, dtype=torch.float64)
        return EvenDraw(flip_partner(shape[0]), mask, torch.full((shape[0],), lam, dtype=torch.float64))


@MODELS.register_module()
class Box(_BetaRegion):
    """CutMix: a box of pixels, clipped at the image's border, comes from the partner (as timm and torchvision do it).

    Args:
        alpha: λ is drawn from Beta(alpha, alpha); the box's sides are sqrt(1 − λ) of the image's before clipping.
    """

    def draw(self, shape, grid, generator):  # noqa: D102
        size = tuple(shape[-2:])
        pixel_mask = _box_mask(size, draw_beta(self.alpha, generator), _draw_cell(size, generator))
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

    def draw(self, shape, grid, generator):  # noqa: D102
        return self.place(shape[0], grid, draw_beta(self.alpha, generator), _draw_cell(grid, generator))

    def place(self, batch: int, grid: tuple[int, int], lam: float, center: tuple[int, int]) -> Draw:
        """Return the draw that follows from λ and the box's center (row, column) in tokens."""
        mask = _box_mask(grid, lam, center)
        return Draw(flip_partner(batch), mask, own_share(mask, batch))


def box_at(size: tuple[int, int], lam: float, center: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a box around ``center`` (row, column) with sides sqrt(1 − λ)·``size``.

    The box is clipped to ``size``; ends are exclusive.
    """
    ends = []
    for side, middle in zip(size, center, strict=True):
        half = int(side * np.sqrt(1 - lam)) // 2
        ends += [max(middle - half, 0), min(middle + half, side)]
    return tuple(ends)


def flip_partner(batch: int) -> Tensor:
    """Return the partner of each image, (B,): image B − 1 − i.

    The middle one of an odd batch takes the image before it; the only image of a batch is its own partner.
    """
    partner = torch.arange(batch - 1, -1, -1)
    if batch % 2:
        partner[batch // 2] = max(batch // 2 - 1, 0)
    return partner


def no_mix(batch: int, grid: tuple[int, int]) -> Draw:
    """Return the draw that takes nothing from any partner."""
    mask = torch.zeros(1, *grid, dtype=torch.bool)
    return EvenDraw(torch.arange(batch), mask, torch.ones(batch, dtype=torch.float64))


def own_share(mask: Tensor, batch: int) -> Tensor:
    """Return the ratio (B,) of a draw with a mask (1, h, w)."""
    return (1 - mask.double().mean(dim=(1, 2))).expand(batch)


def draw_beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha)."""
    # torch's Beta takes no generator: NumPy draws, seeded by ours.
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def step_generator(seed: int, rank: int, step: int) -> torch.Generator:
    """Return the generator of one step of one process.

    Its stream follows from the three numbers alone. A run that resumes at a step therefore draws what an uninterrupted
    one would on every rank, although only rank 0 writes checkpoints.
    """
    (state,) = np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def build(config: Mapping[str, Any] | T, base: type[T]) -> T:
    """Build the region, target or method that ``config`` names; an instance of ``base`` is returned as it is.

    Names are ours, whatever OpenMMLab's default scope is.

    Raises:
        UserError: no such name.
    """
    if isinstance(config, base):
        return config
    options = dict(config)
    name = options.pop("type").removeprefix("mixtransfer.")
    known = {key: cls for key, cls in MODELS.module_dict.items() if isinstance(cls, type) and issubclass(cls, base)}
    if name not in known:
        raise unknown_name(f"mixing {base.__name__.lower().replace('mixing', 'method')}", name, known)
    return known[name](**options)


def _draw_cell(size: tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
    return tuple(torch.randint(side, (), generator=generator).item() for side in size)


def _box_mask(size: tuple[int, int], lam: float, center: tuple[int, int]) -> Tensor:
    top, bottom, left, right = box_at(size, lam, center)
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask
