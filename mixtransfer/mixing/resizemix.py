"""ResizeMix: the whole partner, made smaller, is pasted.

Paper: Qin et al., "ResizeMix: Mixing Data with Preserved Object Information and True Labels", arXiv 2012.11101,
section 3. No official code is at hand; Westlake-AI/openmixup and mmpretrain have the method.

Kept from the paper: the scale is drawn evenly from 0.1 to 0.8, the place evenly, and the label weighs the area; a box
that the border cuts holds the whole partner all the same, as in both codes.
Different: the partner is made smaller with antialiasing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from mixtransfer.errors import UserError
from mixtransfer.mixing.blobs import pixel_draw
from mixtransfer.mixing.draws import PixelDraw
from mixtransfer.mixing.methods import Mixing
from mixtransfer.mixing.regions import Region, box_at, draw_cell
from mixtransfer.mixing.targets import Area
from mixtransfer.registry import MODELS

__all__ = ["ResizeMix", "ResizedDraw", "ResizedImage"]


@dataclass(frozen=True, eq=False)
class ResizedDraw(PixelDraw):
    """The whole partner inside a box.

    Attributes:
        box: its (top, bottom, left, right) in pixels.
    """

    box: tuple[int, int, int, int]

    @override
    def mix(self, images: Tensor) -> Tensor:
        top, bottom, left, right = self.box
        if top == bottom or left == right:
            return images
        partner = images[self.partner.to(images.device)]
        small = F.interpolate(partner.float(), (bottom - top, right - left), mode="bilinear", antialias=True)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = small.to(images.dtype)
        return mixed

    @override
    def shown(self, size: tuple[int, int]) -> Tensor:
        return self.pixel_mask.any().expand(1, *size).double()


@MODELS.register_module()
class ResizedImage(Region):
    """ResizeMix: a smaller picture of the whole partner.

    Args:
        scale: bounds of its sides as shares of the image's, drawn evenly between them.
    """

    keeps_places = False

    def __init__(self, scale: tuple[float, float] = (0.1, 0.8)):
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"ResizedImage: scale={tuple(scale)}; give two rising shares above 0, up to 1")
        self.scale = tuple(scale)

    @override
    def draw(self, shape, grid, generator):
        size = shape[-2], shape[-1]
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * torch.rand((), generator=generator).item()
        box = box_at(size, 1 - scale**2, draw_cell(size, generator))
        pixels = torch.zeros(1, *size, dtype=torch.bool)
        pixels[:, box[0] : box[1], box[2] : box[3]] = True
        plain = pixel_draw(pixels, shape[0], grid)
        return ResizedDraw(plain.partner, plain.mask, plain.ratio, plain.pixel_mask, box)


@MODELS.register_module()
class ResizeMix(Mixing):
    """ResizeMix, whose label weighs the area."""

    def __init__(self, scale: tuple[float, float] = (0.1, 0.8), prob: float = 1.0, seed: int = 0):
        super().__init__(ResizedImage(scale), Area(), prob, seed)
