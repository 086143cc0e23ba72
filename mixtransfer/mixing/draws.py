"""Draws: the mix of one step as a frozen value of plain CPU data, and the random numbers behind it.

Shapes: B batch, H × W image, h × w grid of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtransfer.layers.host_draws import send
from mixtransfer.layers.labels import pool_labels

__all__ = [
    "Draw",
    "EvenDraw",
    "PendingDraw",
    "PixelDraw",
    "double",
    "draw_beta",
    "exact",
    "flip_partner",
    "no_mix",
    "own_share",
    "size_of",
    "step_generator",
]


@dataclass(frozen=True, eq=False)
class Draw:
    """The mix of one step: plain data that can be saved and replayed.

    It is drawn on the CPU; :meth:`to` brings it to the images' device, where nothing of it is read back.

    Attributes:
        partner: (B,) int64, the index of the image that each image is mixed with.
        mask: (B or 1, h, w), the share of each token that comes from the partner; bool if it is 0 or 1 everywhere.
        ratio: (B,) float64, the share of each image that is its own.
        mixes: whether anything comes from a partner, for a draw that lies on another device than the CPU.
        pastes: True if a region is pasted (CutMix-like), False if images are blended evenly (Mixup); ``ratio`` then
            weighs the labels.
        needs: names of the evidence about the unmixed images that the draw waits for; none.
    """

    pastes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    partner: Tensor
    mask: Tensor
    ratio: Tensor
    mixes: bool | None = field(default=None, kw_only=True)

    def resolve(self, evidence: Mapping[str, Tensor]) -> Draw:
        """Return the draw itself, which waits for no evidence; see :meth:`PendingDraw.resolve`."""
        return self

    def to(self, device: torch.device) -> Draw:
        """Return the draw on a device; what lies on the CPU goes there in one copy that the host does not wait for."""
        lying = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        there = {name: exact(value, device) for name, value in lying.items() if value.device != device}
        if not there:
            return self
        mixes = bool(self.mask.any()) if self.mixes is None else self.mixes
        return replace(self, **dict(zip(there, send(list(there.values()), device), strict=True)), mixes=mixes)

    def mix(self, images: Tensor) -> Tensor:
        """Return the mixed images (B, C, H, W); ``images`` itself if nothing comes from a partner."""
        share = self.pixels(size_of(images))
        if not (share.any() if self.mixes is None else self.mixes):
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
        return F.interpolate(double(self.mask[:, None]), size, mode="nearest-exact")[:, 0].to(self.mask.dtype)

    def on_grid(self, size: tuple[int, int]) -> Tensor:
        """Return the partner's share of each token of another grid, (B or 1, h, w) float64."""
        return pool_labels(double(self.mask[:, None]), size)[:, 0]

    def shown(self, size: tuple[int, int]) -> Tensor:
        """Return the share of each of the partner's tokens that the mixed image shows, (B or 1, h, w) float64.

        It is :meth:`on_grid`, unless pixels change their places.
        """
        return self.on_grid(size)

    def label_map(self, images: Tensor) -> Tensor:
        """Return the partner's share of every token as a label map of one channel, (B, 1, h, w), at least float32.

        A backbone has to carry this channel alone (``token_labels``): labels move linearly, so a token whose aligned
        share is m has the label (1 − m)·Y1 + m·Y2.
        """
        mask = self.mask.to(images.device, torch.promote_types(images.dtype, torch.float32))
        return mask.expand(len(images), -1, -1)[:, None]


class PendingDraw:
    """The random part of a draw whose region follows from the unmixed images.

    Attributes:
        pastes: as in :class:`Draw`.
        needs: names of the evidence about the unmixed images that the draw waits for.
    """

    pastes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def resolve(self, evidence: Mapping[str, Tensor]) -> Draw:
        """Return the draw that follows from the evidence, tensors by the names in ``needs``."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class PixelDraw(Draw):
    """A draw whose border may run through tokens.

    Attributes:
        pixel_mask: (B or 1, H, W) bool, the pixels that come from the partner; ``mask`` holds its mean over each token.
    """

    pixel_mask: Tensor

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """Return ``pixel_mask``, (B or 1, H, W) bool; ``size`` must be the size that it was drawn for."""
        assert size_of(self.pixel_mask) == tuple(size)
        return self.pixel_mask


@dataclass(frozen=True, eq=False)
class EvenDraw(Draw):
    """A draw that takes the same share from the partner everywhere: Mixup, or a step that does not mix."""

    pastes: ClassVar[bool] = False


def size_of(maps: Tensor) -> tuple[int, int]:
    """Return the last two sides of a tensor (..., H, W)."""
    return maps.shape[-2], maps.shape[-1]


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


def double(x: Tensor) -> Tensor:
    """Return float64 values, or float32 ones on a device that has no others."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def exact(x: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor of a type that a device has."""
    return x.float() if device.type == "mps" and x.dtype == torch.float64 else x


def own_share(mask: Tensor, batch: int) -> Tensor:
    """Return the ratio (B,) of a draw with a mask (1, h, w)."""
    return (1 - mask.double().mean(dim=(1, 2))).expand(batch)


def draw_beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha)."""
    # torch's Beta takes no generator: NumPy draws, seeded by ours.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def step_generator(seed: int, rank: int, step: int, run_seed: int = 0) -> torch.Generator:
    """Return the generator of one step of one process.

    Its stream follows from the four numbers alone. A run that resumes at a step therefore draws what an uninterrupted
    one would on every rank, although only rank 0 writes checkpoints.

    Args:
        seed: start of the stream, of whatever draws.
        rank: the process's rank.
        step: number of the training step, from 0.
        run_seed: the seed of the whole training, so that trainings with several seeds draw differently.
    """
    (state,) = np.random.SeedSequence([seed, rank, step, run_seed]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))
