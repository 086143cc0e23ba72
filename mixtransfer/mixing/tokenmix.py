"""TokenMix: scattered blocks of tokens from the partner, labels by a teacher's activation map of them.

Paper: Liu et al., "TokenMix: Rethinking Image Mixing for Data Augmentation in Vision Transformers", ECCV 2022,
arXiv 2207.08409. Code: Sense-X/TokenMix (MIT). One union of rectangles on the grid of tokens comes from the partner,
the same for the whole batch; in the other steps the images are Mixup's. The weight of a label is the visible share of
its own image's activation map, which a teacher makes from the unmixed image.

Kept from the published code: λ is 0.5 in steps of blocks (its Beta draw goes unused); ``extra`` tokens more than 1 − λ
of the grid are requested; the search for blocks gives up early, so that some draws have a few tokens less; a block
never spans the grid; the two weights do not sum to 1, and smoothing is split between both labels, so that entries may
be negative.
Different: any grid instead of 14 × 14; a label map of other size than the grid of tokens is weighed by area.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import Draw, flip_partner, own_share, size_of
from mixtransfer.mixing.methods import Mixing
from mixtransfer.mixing.regions import Region, mixup_or
from mixtransfer.mixing.targets import Target
from mixtransfer.registry import MODELS

__all__ = ["ActivationMap", "RandomTokens", "TokenBlocks", "TokenMix", "token_blocks"]

ATTEMPTS = 10
#: Bound of a block's aspect ratio, and of its inverse.
ASPECT = 0.3
#: Keeps an image without any activation from dividing by zero.
EPS = 1e-8


class _CountedTokens(Region):
    def __init__(self, ratio: float = 0.5, extra: int = 14):
        if not 0 <= ratio <= 1 or extra < 0:
            raise UserError(f"{type(self).__name__}: ratio={ratio}, extra={extra}; give a share from 0 to 1, a count")
        self.ratio, self.extra = ratio, extra

    def count(self, grid: tuple[int, int]) -> int:
        """Return the number of tokens that are requested of a grid (h, w)."""
        cells = grid[0] * grid[1]
        return min(cells, int((1 - self.ratio) * cells) + self.extra)

    def choose(self, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return the tokens (h, w) bool that come from the partner."""
        raise NotImplementedError

    def draw(self, shape, grid, generator):
        mask = self.choose(grid, generator)[None]
        return Draw(flip_partner(shape[0]), mask, own_share(mask, shape[0]))


@MODELS.register_module()
class TokenBlocks(_CountedTokens):
    """TokenMix: blocks of tokens, half of the grid and some more, come from the partner.

    Args:
        ratio: share λ of the tokens that are meant to stay.
        extra: tokens that come from the partner beyond that.
    """

    @override
    def choose(self, grid, generator):
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        return token_blocks(grid, self.count(grid), random.Random(seed))


@MODELS.register_module()
class RandomTokens(_CountedTokens):
    """TokenMix's other mask: tokens anywhere, one by one.

    Args:
        ratio: share λ of the tokens that stay, but for ``extra``.
        extra: tokens that come from the partner beyond that.
    """

    @override
    def choose(self, grid, generator):
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        return random_tokens(grid, self.count(grid), np.random.default_rng(seed))


def token_blocks(grid: tuple[int, int], count: int, source: random.Random) -> Tensor:
    """Return a union of rectangles of at most ``count`` tokens of a grid, (h, w) bool.

    Sizes and places come from ``source``, as the published code draws them from Python's generator: area and aspect
    ratio, and, where such a block is smaller than the grid, its upper left corner.
    """
    mask = np.zeros(grid, dtype=bool)
    taken = 0
    while taken < count:
        added = _add_block(mask, count - taken, source)
        if not added:
            break
        taken += added
    return torch.from_numpy(mask)


def _add_block(mask: np.ndarray, room: int, source: random.Random) -> int:
    """Add one block of at most ``room`` new tokens to the mask, and return how many are new; 0 if none was found."""
    for _ in range(ATTEMPTS):
        area = source.uniform(1, room)
        aspect = math.exp(source.uniform(math.log(ASPECT), -math.log(ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= mask.shape[0] or width >= mask.shape[1]:
            continue
        top, left = source.randint(0, mask.shape[0] - height), source.randint(0, mask.shape[1] - width)
        block = mask[top : top + height, left : left + width]
        new = int(block.size - block.sum())
        if 0 < new <= room:
            block[:] = True
            return new
    return 0


def random_tokens(grid: tuple[int, int], count: int, source: np.random.Generator | np.random.RandomState) -> Tensor:
    """Return ``count`` tokens of a grid, (h, w) bool, the first of a permutation from ``source``."""
    mask = np.zeros(grid[0] * grid[1], dtype=bool)
    mask[source.permutation(mask.size)[:count]] = True
    return torch.from_numpy(mask.reshape(grid))


@MODELS.register_module()
class ActivationMap(Target):
    """The weight of an image's label is the visible share of its activation map (section 3).

    ``"activation_map"`` is the map (B, h, w) of each unmixed image's own class, not negative. Targets are rows of one
    class, smoothed or not; the class is the largest entry. Rows keep their sum only if the weights sum to 1.
    """

    needs_unmixed = ("activation_map",)

    @override
    def relabel(self, targets: Tensor, draw: Draw, evidence: Mapping[str, Tensor]) -> Tensor:
        partner = draw.partner.to(targets.device)
        stays, comes = visible(evidence["activation_map"], draw)
        label = torch.zeros_like(targets).scatter_(1, targets.argmax(dim=1, keepdim=True), 1.0)
        # Half of each smoothed label is the label of equal weights; the weights differ from that by whole classes.
        even = (targets + targets[partner]) / 2
        stays, comes = stays.to(targets)[:, None], comes.to(targets)[:, None]
        return even + (stays - 0.5) * label + (comes - 0.5) * label[partner]


def visible(activation: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Return the shares (B,) of each image's and of its partner's map (B, h, w) that the mixed image shows."""
    maps = activation / (activation.sum(dim=(1, 2), keepdim=True) + EPS)
    share, shown = draw.on_grid(size_of(maps)).to(maps), draw.shown(size_of(maps)).to(maps)
    return (maps * (1 - share)).sum(dim=(1, 2)), (maps[draw.partner.to(maps.device)] * shown).sum(dim=(1, 2))


@MODELS.register_module()
class TokenMix(Mixing):
    """TokenMix in some steps, Mixup in the others.

    Args:
        mixup_alpha: λ of Mixup is drawn from Beta(alpha, alpha).
        ratio: share λ of the tokens that are meant to stay in steps of blocks.
        extra: tokens that come from the partner beyond that.
        switch_prob: probability of blocks.
        prob: probability that a step mixes.
        seed: start of the random stream.
    """

    def __init__(
        self,
        mixup_alpha: float = 0.8,
        ratio: float = 0.5,
        extra: int = 14,
        switch_prob: float = 0.5,
        prob: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(mixup_or(TokenBlocks(ratio, extra), mixup_alpha, switch_prob), ActivationMap(), prob, seed)
