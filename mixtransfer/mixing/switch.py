"""Mixup or another region, step by step: the switch of timm's training script, which most later recipes use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mixtransfer.errors import UserError
from mixtransfer.mixing.methods import Mixing
from mixtransfer.mixing.regions import Box, Region, WholeImage, build
from mixtransfer.mixing.targets import Area
from mixtransfer.registry import MODELS

__all__ = ["MixupOrCutMix", "OneOf", "mixup_or"]


@MODELS.register_module()
class OneOf(Region):
    """One of several regions, drawn anew in each step.

    Args:
        regions: configs or instances of regions.
        weights: how often each is drawn, relative to the others; equally often by default.
    """

    def __init__(self, regions: Sequence[Mapping[str, Any] | Region], weights: Sequence[float] | None = None):
        self.regions = [build(region, Region) for region in regions]
        self.weights = tuple(weights or [1.0] * len(self.regions))
        if len(self.weights) != len(self.regions) or min(self.weights) < 0 or sum(self.weights) == 0:
            raise UserError(f"OneOf: weights={weights}; give each of {len(self.regions)} regions a number from 0 up")
        self.needs = tuple(dict.fromkeys(need for region in self.regions for need in region.needs))
        self.whole_pixels = all(region.whole_pixels for region in self.regions)

    def draw(self, shape, grid, generator):  # noqa: D102
        chosen = torch.multinomial(torch.tensor(self.weights).double(), 1, generator=generator).item()
        return self.regions[chosen].draw(shape, grid, generator)


def mixup_or(region: Region, alpha: float, switch_prob: float) -> OneOf:
    """Return the switch between Mixup with ``alpha`` and, with probability ``switch_prob``, another region.

    Raises:
        UserError: ``switch_prob`` is no probability.
    """
    if not 0 <= switch_prob <= 1:
        raise UserError(f"switch_prob={switch_prob}; give a probability from 0 to 1")
    return OneOf([WholeImage(alpha), region], [1 - switch_prob, switch_prob])


@MODELS.register_module()
class MixupOrCutMix(Mixing):
    """Mixup in some steps, CutMix in the others; the defaults are DeiT's (arXiv 2012.12877, table 9).

    Args:
        mixup_alpha: λ of Mixup is drawn from Beta(alpha, alpha).
        cutmix_alpha: likewise for CutMix.
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
