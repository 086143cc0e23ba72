"""TransMix: CutMix whose label follows the attention of the class token.

Paper: Chen et al., "TransMix: Attend to Mix for Vision Transformers", CVPR 2022, arXiv 2111.09833. Code:
Beckschen/TransMix (Apache-2.0). The image is CutMix's, in the other steps Mixup's. The partner's share of the label is,
image by image, the mean of its share of the area and its share of the class token's attention in the last block.

Kept from the published code: a token belongs to the partner if its first pixel does; the attention of the class token
to itself is left out; no gradient flows through the attention; steps of Mixup weigh labels by λ.
Different: the grid is the network's, not the square root of the number of tokens; one row of one block's attention is
computed, not the maps of all blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from mixtransfer.mixing.draws import Draw, PixelDraw, double, size_of
from mixtransfer.mixing.methods import Mixing
from mixtransfer.mixing.regions import Box, mixup_or
from mixtransfer.mixing.targets import Target, blend
from mixtransfer.registry import MODELS

__all__ = ["AttentionWeighted", "TransMix", "attention_share"]


@MODELS.register_module()
class AttentionWeighted(Target):
    """The weight of an image's label is the mean of its shares of area and of class attention (section 3)."""

    needs = ("class_attention",)

    @override
    def relabel(self, targets, draw, evidence):
        attended = attention_share(evidence["class_attention"], draw)
        return blend(targets, draw, (1 - draw.ratio.to(attended) + attended) / 2)


def attention_share(attention: Tensor, draw: Draw) -> Tensor:
    """Return the partner's share (B,) of the class token's attention (B, h, w), 0 where it attends to no patch."""
    size = size_of(attention)
    if isinstance(draw, PixelDraw):
        # "nearest" takes the first pixel of a token, as published.
        share = F.interpolate(double(draw.pixel_mask[:, None]), size, mode="nearest")[:, 0]
    else:
        share = draw.on_grid(size)
    attended = (attention * share.to(attention)).sum(dim=(1, 2))
    return attended / attention.sum(dim=(1, 2)).clamp(min=torch.finfo(attention.dtype).tiny)


@MODELS.register_module()
class TransMix(Mixing):
    """TransMix in some steps, Mixup in the others.

    The published DeiT-B trains with ``switch_prob=0.8``. DeiT-S is meant to, but its file misspells the option, so that
    it trains with 0.5.

    Args:
        mixup_alpha: λ of Mixup is drawn from Beta(alpha, alpha).
        cutmix_alpha: λ of the box is drawn from Beta(alpha, alpha).
        switch_prob: probability of a box.
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
        super().__init__(mixup_or(Box(cutmix_alpha), mixup_alpha, switch_prob), AttentionWeighted(), prob, seed)
