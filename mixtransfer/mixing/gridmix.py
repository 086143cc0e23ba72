"""GridMix: a regular grid of holes shows the partner.

Code: IlyaDobrynin/GridMixup, which Westlake-AI/openmixup takes over (Apache-2.0); GridMask's grid (Chen et al., arXiv
2001.04086) with CutMix's label. The method of the same name by Baek et al., "GridMix: Strong regularization through
local context mapping", Pattern Recognition 2021, adds labels of single cells, which this code has not.

Kept from the published code: λ is drawn from a Beta distribution, a hole's sides are sqrt(1 − λ) of its cell's, at
least a pixel and at most a cell less a pixel; the number of cells is drawn anew in each step; the label weighs pixels.
Different: the grid covers the whole image (OpenMixup's default), and lies at a random place.
"""

from __future__ import annotations

import torch
from typing_extensions import override

from mixtransfer.errors import UserError
from mixtransfer.mixing.blobs import pixel_draw
from mixtransfer.mixing.draws import draw_beta
from mixtransfer.mixing.methods import Mixing
from mixtransfer.mixing.regions import Region
from mixtransfer.mixing.targets import Area
from mixtransfer.registry import MODELS

__all__ = ["GridHoles", "GridMix"]


@MODELS.register_module()
class GridHoles(Region):
    """GridMix: holes of equal size in equal distances come from the partner.

    Args:
        alpha: λ is drawn from Beta(alpha, alpha).
        cells: fewest and most cells along the shorter side.
    """

    def __init__(self, alpha: float = 1.0, cells: tuple[int, int] = (2, 6)):
        if alpha <= 0 or not 1 <= cells[0] <= cells[1]:
            raise UserError(f"GridHoles: alpha={alpha}, cells={tuple(cells)}; give a number above 0, rising counts")
        self.alpha, self.cells = alpha, tuple(cells)

    @override
    def draw(self, shape, grid, generator):
        size = shape[-2], shape[-1]
        count = int(torch.randint(self.cells[0], self.cells[1] + 1, (), generator=generator))
        cell = max(-(-min(size) // count), 2)
        hole = min(max(int(cell * (1 - draw_beta(self.alpha, generator)) ** 0.5), 1), cell - 1)
        start = torch.randint(cell, (2,), generator=generator)
        rows, columns = ((torch.arange(side) + offset) % cell < hole for side, offset in zip(size, start, strict=True))
        return pixel_draw((rows[:, None] & columns)[None], shape[0], grid)


@MODELS.register_module()
class GridMix(Mixing):
    """GridMix, whose label weighs pixels."""

    def __init__(self, alpha: float = 1.0, cells: tuple[int, int] = (2, 6), prob: float = 1.0, seed: int = 0):
        super().__init__(GridHoles(alpha, cells), Area(), prob, seed)
