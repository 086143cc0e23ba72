"""Regions that follow the partner's ground truth, for dense fine-tuning: half of its classes, or some of its instances.

ClassMix: Olsson et al., "ClassMix: Segmentation-Based Data Augmentation for Semi-Supervised Learning", WACV 2021,
arXiv 2007.07936; code WilhelmT/ClassMix (MIT), which cuts out what a teacher predicts. Copy-paste: Ghiasi et al.,
"Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021, arXiv 2012.07177.

Their draws wait for the partner's ground truth, which :class:`~mixtransfer.transfer.TokenMixHook` hands in.

Shapes: H × W image, n instances.

Different: ClassMix's classes are those of the annotation. The jitter of scales is the partner's alone, the image's own
is the pipeline's matter; pixels of other instances that a pasted one overlaps come along, as they are in the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from mixtransfer.errors import UserError
from mixtransfer.mixing.blobs import pixel_draw
from mixtransfer.mixing.draws import Draw, PendingDraw
from mixtransfer.mixing.regions import Region
from mixtransfer.registry import MODELS

__all__ = ["ClassRegion", "InstanceRegion"]


@dataclass(frozen=True)
class PendingChoice(PendingDraw):
    """Random part of a choice among classes or instances; how many there are to choose from is not known yet.

    Attributes:
        grid: the grid (h, w) of the draw.
        share: share of the candidates that is chosen, rounded down; None draws their number too.
        seed: start of the choice's random stream.
    """

    grid: tuple[int, int]
    share: float | None
    seed: int

    @override
    def resolve(self, evidence: Mapping[str, Tensor]) -> Draw:
        """Return the draw that pastes chosen classes of a map (H, W), or chosen masks of (n, H, W) bool."""
        masks = self.candidates(evidence)
        generator, count = torch.Generator().manual_seed(self.seed), len(masks)
        picked = int(torch.randint(count + 1, (), generator=generator)) if self.share is None else self.share * count
        chosen = torch.randperm(count, generator=generator)[: int(picked)]
        return pixel_draw(masks[chosen].any(dim=0, keepdim=True), 1, self.grid)

    def candidates(self, evidence: Mapping[str, Tensor]) -> Tensor:
        """Return the masks (n, H, W) bool to choose from."""
        raise NotImplementedError


@dataclass(frozen=True)
class PendingClasses(PendingChoice):
    """Random part of a choice among classes."""

    needs: ClassVar[tuple[str, ...]] = ("partner_classes",)

    @override
    def candidates(self, evidence: Mapping[str, Tensor]) -> Tensor:
        classes = evidence["partner_classes"]
        return classes == classes[classes >= 0].unique()[:, None, None]


@dataclass(frozen=True)
class PendingInstances(PendingChoice):
    """Random part of a choice among instances."""

    needs: ClassVar[tuple[str, ...]] = ("partner_instances",)

    @override
    def candidates(self, evidence: Mapping[str, Tensor]) -> Tensor:
        return evidence["partner_instances"]


class _TruthRegion(Region):
    pending: type[PendingChoice]
    share: float | None

    @override
    def draw(self, shape, grid, generator):
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        return self.pending((grid[0], grid[1]), self.share, seed)


@MODELS.register_module()
class ClassRegion(_TruthRegion):
    """ClassMix: the pixels of some of the partner's classes, ``"partner_classes"`` (H, W), −1 where there is none.

    Args:
        share: share of the classes that occur, rounded down; half of them as published.
    """

    needs, pending = PendingClasses.needs, PendingClasses

    def __init__(self, share: float = 0.5):
        if not 0 < share <= 1:
            raise UserError(f"ClassRegion: share={share}; give a share above 0, up to 1")
        self.share = share


@MODELS.register_module()
class InstanceRegion(_TruthRegion):
    """Copy-paste: the pixels of some of the partner's instances, ``"partner_instances"`` (n, H, W) bool.

    Args:
        share: share of the instances, rounded down; by default their number is drawn evenly from none to all.
        jitter: bounds of a factor that the partner is resized by first, (0.1, 2.0) in the paper's large jitter; it is
            drawn evenly for every image. What grows over the image's lower and right border is cut off.
    """

    needs, pending = PendingInstances.needs, PendingInstances

    def __init__(self, share: float | None = None, jitter: tuple[float, float] | None = None):
        if share is not None and not 0 < share <= 1:
            raise UserError(f"InstanceRegion: share={share}; give a share above 0, up to 1, or none")
        if jitter is not None and (len(jitter) != 2 or not 0 < jitter[0] <= jitter[1]):
            raise UserError(f"InstanceRegion: jitter={jitter}; give two factors above 0, the smaller one first")
        self.share, self.jitter = share, jitter
