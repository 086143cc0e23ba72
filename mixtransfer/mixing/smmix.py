"""SMMix: the square that the network attends to most covers the one it attends to least.

Paper: Chen et al., "SMMix: Self-Motivated Image Mixing for Vision Transformers", ICCV 2023, arXiv 2212.12977. Code:
ChenMnZ/SMMix (no licence). The network first sees the unmixed batch. The square of the partner that its patches attend
to most is pasted over the square of the image that they attend to least. Tokens of either side are classified by
``region_head`` (fine-grained labels), and the mixed logits are pulled to the mixture of the unmixed ones
(consistency). In the other steps the images are Mixup's, and the label's loss is the only one.

Shapes: B batch, h × w grid of tokens, K classes.

Kept from the published code: the side of the square is drawn once a step from a quarter to three quarters of the
grid's; all losses have weight 1; the logits of the unmixed pass are mixed, not their softmax; that pass is one of
evaluation, without gradient. In steps of Mixup ``region_head`` has gradients of 0.
Different: any grid, whose shorter side the square's is drawn from; the attention of the last block alone is read; the
paste is one gather.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from mixtransfer.errors import UserError
from mixtransfer.layers.host_draws import send
from mixtransfer.layers.labels import pool_labels
from mixtransfer.mixing.draws import Draw, PendingDraw, double, exact, flip_partner, no_mix, size_of
from mixtransfer.mixing.losses import divergence, soft_cross_entropy
from mixtransfer.mixing.methods import Mixing
from mixtransfer.mixing.regions import Region, mixup_or
from mixtransfer.mixing.targets import Area, blend
from mixtransfer.registry import MODELS

__all__ = ["AttendedSquare", "FineGrained", "PendingSquare", "SMMix", "SquareDraw", "place_square", "square_scores"]


@dataclass(frozen=True, eq=False)
class SquareDraw(Draw):
    """A square of each partner, pasted at another place.

    It is made on the device of the attention, so that the host does not wait for it.

    Attributes:
        shift: (B, 2) int64, rows and columns of tokens from where a square is pasted to where the partner has it.
    """

    shift: Tensor

    @override
    def mix(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = (self._source(axis, side).to(images.device) for axis, side in enumerate((height, width)))
        index = (rows[:, :, None] * width + columns[:, None]).flatten(1)
        partner = images[self.partner.to(images.device)].flatten(2)
        pasted = partner.gather(2, index[:, None].expand_as(partner)).view_as(images)
        return torch.where(self.pixels((height, width))[:, None].to(images.device), pasted, images)

    @override
    def shown(self, size: tuple[int, int]) -> Tensor:
        height, width = size_of(self.mask)
        rows, columns = (
            (torch.arange(side, device=self.mask.device) - self.shift[:, axis, None]) % side
            for axis, side in enumerate((height, width))
        )
        source = self.mask.flatten(1).gather(1, (rows[:, :, None] * width + columns[:, None]).flatten(1))
        return pool_labels(double(source).view(-1, 1, height, width), size)[:, 0]

    def _source(self, axis: int, side: int) -> Tensor:
        """Return the partner's row (or column) of pixels behind each of an image, (B, side)."""
        step = (double(self.shift[:, axis]) * side / self.mask.size(1 + axis)).round().long()
        return (torch.arange(side, device=step.device) + step[:, None]).clamp(0, side - 1)


@dataclass(frozen=True)
class PendingSquare(PendingDraw):
    """The random part of a :class:`SquareDraw`; where the square lies follows from the attention.

    Attributes:
        size: place of the side among the allowed ones, from 0, below 1.
        smallest: the shortest side, as a share of the grid's shorter side.
        largest: the longest one.
    """

    needs: ClassVar[tuple[str, ...]] = ("image_attention",)

    size: float
    smallest: float
    largest: float

    def resolve(self, evidence: Mapping[str, Tensor]) -> Draw:
        """Return the draw that follows from ``evidence["image_attention"]`` (B, h, w) of the unmixed images."""
        attention = evidence["image_attention"]
        grid = size_of(attention)
        sides = allowed_sides(min(grid), self.smallest, self.largest)
        if not sides:
            return no_mix(len(attention), grid).to(attention.device)
        return place_square(attention, sides[int(self.size * len(sides))])


def allowed_sides(cells: int, smallest: float, largest: float) -> range:
    """Return the sides of squares on a grid of ``cells`` tokens; none on a grid of one token."""
    return range(max(int(cells * smallest), 1), min(int(cells * largest), cells - 1) + 1)


def square_scores(attention: Tensor, side: int) -> Tensor:
    """Return the attention (B, h, w) summed over every square of ``side`` tokens, (B, h − side + 1, w − side + 1)."""
    return F.avg_pool2d(attention[:, None], side, stride=1, divisor_override=1)[:, 0]


def place_square(attention: Tensor, side: int) -> SquareDraw:
    """Return the draw that pastes squares of ``side`` tokens by the attention (B, h, w) to the unmixed images."""
    batch, height, width = attention.shape
    scores = square_scores(attention, side)
    ratio = torch.full((batch,), 1 - side**2 / (height * width), dtype=torch.float64)
    partner, ratio = send([flip_partner(batch), exact(ratio, scores.device)], scores.device)
    columns = scores.size(2)
    target, source = scores.flatten(1).argmin(dim=1), scores.flatten(1).argmax(dim=1)[partner]
    target, source = (torch.stack([cell // columns, cell % columns], dim=1) for cell in (target, source))
    inside = [
        (cells >= target[:, axis, None]) & (cells < target[:, axis, None] + side)
        for axis, cells in enumerate(torch.arange(n, device=scores.device) for n in (height, width))
    ]
    return SquareDraw(partner, inside[0][:, :, None] & inside[1][:, None], ratio, source - target, mixes=True)


@MODELS.register_module()
class AttendedSquare(Region):
    """The most attended square of the partner in place of the least attended one (section 3).

    Args:
        smallest: the shortest side of a square, as a share of the grid's shorter side.
        largest: the longest one, below 1.
    """

    needs = ("image_attention",)
    keeps_places = False

    def __init__(self, smallest: float = 0.25, largest: float = 0.75):
        if not 0 < smallest <= largest < 1:
            raise UserError(
                f"AttendedSquare: smallest={smallest}, largest={largest}; give rising shares above 0, below 1"
            )
        self.smallest, self.largest = smallest, largest

    @override
    def draw(self, shape, grid, generator):
        return PendingSquare(torch.rand((), generator=generator).item(), self.smallest, self.largest)


@MODELS.register_module()
class FineGrained(Area):
    """Area weighs the label; either image's tokens have a loss of their own, and the logits one (section 3).

    ``"region_logits"`` (B, 2, K): the logits of ``region_head`` for the mean token of the image's own, and for the mean
    token of its partner's. ``"unmixed_logits"`` (B, K): those of the unmixed images.
    """

    needs = ("region_logits",)
    needs_unmixed = ("unmixed_logits",)

    @override
    def losses(self, targets, draw, evidence):
        own, pasted = evidence["region_logits"].unbind(1)
        mask = draw.mask.flatten(1).to(own.device)
        fine = soft_cross_entropy(own, targets, (mask < 1).any(dim=1))
        fine = (fine + soft_cross_entropy(pasted, targets[draw.partner.to(own.device)], (mask > 0).any(dim=1))) / 2
        if not draw.pastes:
            # region_head stays part of the graph: distributed training wants a gradient for every parameter.
            return {"loss_fine": 0 * fine, "loss_consistency": torch.zeros_like(fine)}
        expected = blend(evidence["unmixed_logits"], draw, 1 - draw.ratio)
        return {"loss_fine": fine, "loss_consistency": divergence(evidence["logits"], expected)}


@MODELS.register_module()
class SMMix(Mixing):
    """SMMix in some steps, Mixup in the others.

    Args:
        alpha: λ of Mixup is drawn from Beta(alpha, alpha).
        switch_prob: probability of SMMix.
        prob: probability that a step mixes.
        seed: start of the random stream.
    """

    def __init__(self, alpha: float = 0.8, switch_prob: float = 0.5, prob: float = 1.0, seed: int = 0):
        super().__init__(mixup_or(AttendedSquare(), alpha, switch_prob), FineGrained(), prob, seed)
