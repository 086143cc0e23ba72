"""Mixing methods: a region and a target under one name, and the published pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import get_rank
from torch import Tensor

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import Draw, PendingDraw, no_mix, step_generator
from mixtransfer.mixing.regions import Box, Region, TokenBox, WholeImage, mixup_or
from mixtransfer.mixing.targets import AlignedTokens, Area, Target, blend
from mixtransfer.registry import MODELS, build

__all__ = ["CutMix", "Mixing", "Mixup", "MixupOrCutMix", "TLAlign"]


@MODELS.register_module()
class Mixing:
    """Any region with any target; the methods below are the published pairs.

    Training step number ``step``::

        pending = mixing.draw(images.shape, grid, step)
        unmixed = ...  # the evidence about the unmixed images that mixing.needs_unmixed(pending) names; mostly none
        draw = pending.resolve(unmixed)
        mixed = mixing.apply(images, draw)
        evidence = ...  # ``unmixed``, and the evidence from the pass of ``mixed`` that mixing.target.needs names
        mixed_targets = mixing.relabel(targets, draw, evidence)
        extra = mixing.losses(targets, draw, evidence)

    A draw is a function of (seed, rank, step, seed of the run), so a resumed run draws as an uninterrupted one.

    Args:
        region: config or instance of a :class:`~mixtransfer.mixing.regions.Region`.
        target: config or instance of a :class:`~mixtransfer.mixing.targets.Target`.
        prob: probability that a step mixes.
        seed: start of the random stream; every process of a distributed run has a stream of its own.

    Attributes:
        run_seed: the seed of the training, which its model sets; 0 outside of one.

    Raises:
        UserError: a number out of its range, or no region or target of that name.
    """

    def __init__(
        self,
        region: Mapping[str, Any] | Region,
        target: Mapping[str, Any] | Target,
        prob: float = 1.0,
        seed: int = 0,
    ):
        if not 0 <= prob <= 1:
            raise UserError(f"{type(self).__name__}: prob={prob}; give a probability from 0 to 1")
        if seed < 0:
            raise UserError(f"{type(self).__name__}: seed={seed}; give 0 or more")
        self.region, self.target = build(region, Region), build(target, Target)
        self.prob, self.seed, self.run_seed = prob, seed, 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of all evidence that the model has to be able to collect."""
        return tuple(dict.fromkeys(self.region.needs + self.target.needs_unmixed + self.target.needs))

    def needs_unmixed(self, draw: Draw | PendingDraw) -> tuple[str, ...]:
        """Return the names of the evidence about the unmixed images that a step with this draw needs."""
        return (*draw.needs, *(self.target.needs_unmixed if draw.pastes else ()))

    def draw(self, shape: tuple[int, ...], grid: tuple[int, int], step: int) -> Draw | PendingDraw:
        """Draw for training step ``step`` (from 0): images of ``shape`` (B, C, H, W) on a ``grid`` (h, w) of tokens."""
        generator = step_generator(self.seed, get_rank(), step, self.run_seed)
        if torch.rand((), generator=generator) >= self.prob:
            return no_mix(shape[0], grid)
        return self.region.draw(shape, grid, generator)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the mixed images; never writes into ``images``."""
        return self.region.apply(images, draw)

    def relabel(self, targets: Tensor, draw: Draw, evidence: Mapping[str, Tensor]) -> Tensor:
        """Return the labels (B, K) of the mixed images."""
        if not draw.pastes:
            return blend(targets, draw, 1 - draw.ratio)
        return self.target.relabel(targets, draw, evidence)

    def losses(self, targets: Tensor, draw: Draw, evidence: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses besides the label's, by name; see :meth:`~mixtransfer.mixing.targets.Target.losses`."""
        return self.target.losses(targets, draw, evidence)


@MODELS.register_module()
class Mixup(Mixing):
    """Mixup (arXiv 1710.09412) with the alpha of DeiT's recipe."""

    def __init__(self, alpha: float = 0.8, prob: float = 1.0, seed: int = 0):
        super().__init__(WholeImage(alpha), Area(), prob, seed)


@MODELS.register_module()
class CutMix(Mixing):
    """CutMix (arXiv 1905.04899)."""

    def __init__(self, alpha: float = 1.0, prob: float = 1.0, seed: int = 0):
        super().__init__(Box(alpha), Area(), prob, seed)


@MODELS.register_module()
class TLAlign(Mixing):
    """TL-Align (arXiv 2210.06455): a box of tokens, and labels that follow the network's attention."""

    def __init__(self, alpha: float = 1.0, prob: float = 1.0, seed: int = 0):
        super().__init__(TokenBox(alpha), AlignedTokens(), prob, seed)


@MODELS.register_module()
class MixupOrCutMix(Mixing):
    """Mixup in some steps, CutMix in the others; the defaults are DeiT's (arXiv 2012.12877, table 9).

    Args:
        mixup_alpha: λ of Mixup is drawn from Beta(alpha, alpha).
        cutmix_alpha: λ of CutMix is drawn from Beta(alpha, alpha).
        switch_prob: probability of CutMix.
        prob: probability that a step mixes.
        seed: start of the random stream.
    """

    def __init__(
        self,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        switch_prob: float = 0.5,
        prob: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(mixup_or(Box(cutmix_alpha), mixup_alpha, switch_prob), Area(), prob, seed)
