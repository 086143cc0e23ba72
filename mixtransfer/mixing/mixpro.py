"""MixPro: large cells anywhere come from the partner, and the label trusts attention as far as the answer is right.

Paper: Zhao et al., "MixPro: Data Augmentation with MaskMix and Progressive Attention Labeling for Vision Transformer",
ICLR 2023, arXiv 2304.12043, section 3. Code: fistyee/MixPro (MIT), main.py and utils.py.

Kept from the published code: every image has a mask of its own with the same count of cells, ceil(cells · λ) of which
stay; a cell is 4 × 4 tokens (56 pixels of DeiT's 14); the own share of the label is s·a + (1 − s)·r, where a is its
share of the attention, r of the area, and s the cosine between the softmax of the answer and the label by area; half
of the steps are Mixup's or CutMix's.
Different: the partner is the flipped batch instead of a permutation; labels stay smoothed where the published loss
takes plain ones; no gradient flows through the weight; cells that do not divide the grid are cut at its border.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import Draw, PixelDraw, draw_beta, flip_partner
from mixtransfer.mixing.methods import Mixing
from mixtransfer.mixing.regions import Box, RandomChoice, Region, WholeImage
from mixtransfer.mixing.targets import Target, blend
from mixtransfer.mixing.transmix import attention_share
from mixtransfer.registry import MODELS

__all__ = ["MaskedCells", "MixPro", "ProgressiveAttention"]


@MODELS.register_module()
class MaskedCells(Region):
    """MaskMix: square cells of tokens anywhere, others for every image.

    Args:
        alpha: the share λ of cells that stay is drawn from Beta(alpha, alpha).
        side: tokens a side of a cell.
    """

    def __init__(self, alpha: float = 1.0, side: int = 4):
        if alpha <= 0 or side < 1:
            raise UserError(f"MaskedCells: alpha={alpha}, side={side}; give a number above 0, a count from 1")
        self.alpha, self.side = alpha, side

    @override
    def draw(self, shape, grid, generator):
        rows, columns = (-(-side // self.side) for side in grid)
        stay = math.ceil(rows * columns * draw_beta(self.alpha, generator))
        order = torch.rand(shape[0], rows * columns, generator=generator).argsort(dim=1)
        cells = (order >= stay).view(-1, rows, columns)
        mask = cells.repeat_interleave(self.side, 1).repeat_interleave(self.side, 2)[:, : grid[0], : grid[1]]
        return Draw(flip_partner(shape[0]), mask, 1 - mask.double().mean(dim=(1, 2)))


@MODELS.register_module()
class ProgressiveAttention(Target):
    """The weight of a label is between its shares of area and of class attention (section 3.2).

    The better the network's answer fits the label by area, the more its attention counts.
    """

    needs = ("class_attention",)

    @override
    def relabel(self, targets: Tensor, draw: Draw, evidence) -> Tensor:
        area = 1 - draw.ratio.to(targets)
        attended = attention_share(evidence["class_attention"], draw).to(targets)
        answer = evidence["logits"].detach().to(targets).softmax(dim=1)
        trust = F.cosine_similarity(blend(evidence["targets"], draw, area), answer, dim=1)
        return blend(targets, draw, trust * attended + (1 - trust) * area)


@MODELS.register_module()
class MixPro(Mixing):
    """MixPro in half of the steps, Mixup or CutMix in the others.

    Args:
        alpha: λ of the cells is drawn from Beta(alpha, alpha).
        side: tokens a side of a cell.
        mixup_alpha: λ of Mixup is drawn from Beta(alpha, alpha).
        cutmix_alpha: λ of the box is drawn from Beta(alpha, alpha).
        switch_prob: probability of MixPro's cells.
        prob: probability that a step mixes.
        seed: start of the random stream.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        side: int = 4,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        switch_prob: float = 0.5,
        prob: float = 1.0,
        seed: int = 0,
    ):
        if not 0 <= switch_prob <= 1:
            raise UserError(f"switch_prob={switch_prob}; give a probability from 0 to 1")
        rest = (1 - switch_prob) / 2
        regions = [MaskedCells(alpha, side), WholeImage(mixup_alpha), Box(cutmix_alpha)]
        super().__init__(RandomChoice(regions, [switch_prob, rest, rest]), ProgressiveAttention(), prob, seed)

    @override
    def relabel(self, targets: Tensor, draw: Draw, evidence) -> Tensor:
        if isinstance(draw, PixelDraw):  # CutMix's box
            return blend(targets, draw, 1 - draw.ratio)
        return super().relabel(targets, draw, evidence)
