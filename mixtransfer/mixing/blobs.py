"""FMix and CowMix: blobs, where smoothed noise is above or below a threshold, come from the partner.

FMix: Harris et al., "FMix: Enhancing Mixed Sample Data Augmentation", arXiv 2002.12047, section 4; code ecs-vlc/FMix
(MIT). CowMix: French et al., "Milking CowMask for Semi-Supervised Image Classification", arXiv 2003.12022, section 3;
code google-research/google-research, milking_cowmask (Apache-2.0).

Kept from the published code: FMix's noise is normal in Fourier space and falls with the frequency to the power of
``decay``, its threshold leaves a share of λ, one mask is for the whole batch; CowMix's is white noise behind a
Gaussian, its threshold follows from mean, deviation and the wanted share, and every image has a mask of its own.
Different: the label weighs the pixels that stayed, not the share that was wanted; the Gaussian wraps around the border,
where the published one sees zeros, and its width is a share of the image's shorter side, which for CowMix's 32 pixels
gives the published 4 to 16.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import PixelDraw, draw_beta, flip_partner
from mixtransfer.mixing.methods import Mixing
from mixtransfer.mixing.regions import Region
from mixtransfer.mixing.targets import Area
from mixtransfer.registry import MODELS

__all__ = ["CowMix", "FMix", "FourierBlobs", "GaussianBlobs", "pixel_draw"]


def pixel_draw(pixels: Tensor, batch: int, grid: tuple[int, int]) -> PixelDraw:
    """Return the draw whose ``pixels`` (B or 1, H, W) bool come from the partner."""
    mask = F.interpolate(pixels[:, None].double(), grid, mode="area")[:, 0]
    ratio = (1 - pixels.double().mean(dim=(1, 2))).expand(batch)
    return PixelDraw(flip_partner(batch), mask, ratio, pixels)


@MODELS.register_module()
class FourierBlobs(Region):
    """FMix: the image keeps the brightest λ of a low-frequency picture.

    Args:
        alpha: λ is drawn from Beta(alpha, alpha).
        decay: power by which the noise falls with its frequency; the larger, the fewer blobs.
    """

    def __init__(self, alpha: float = 1.0, decay: float = 3.0):
        if alpha <= 0 or decay < 0:
            raise UserError(f"FourierBlobs: alpha={alpha}, decay={decay}; give a number above 0, and one from 0 up")
        self.alpha, self.decay = alpha, decay

    @override
    def draw(self, shape, grid, generator):
        size = shape[-2], shape[-1]
        rows, columns = torch.fft.fftfreq(size[0], dtype=torch.float64), torch.fft.rfftfreq(size[1]).double()
        frequency = torch.hypot(rows[:, None], columns).clamp(min=1 / max(size))
        noise = torch.randn(2, *frequency.shape, dtype=torch.float64, generator=generator) / frequency**self.decay
        picture = torch.fft.irfft2(torch.complex(*noise), size)
        rounded = math.ceil if torch.rand((), generator=generator) < 0.5 else math.floor
        count = rounded(draw_beta(self.alpha, generator) * picture.numel())
        pixels = torch.ones(picture.numel(), dtype=torch.bool)
        pixels[picture.flatten().argsort(descending=True)[:count]] = False
        return pixel_draw(pixels.view(1, *size), shape[0], grid)


@MODELS.register_module()
class GaussianBlobs(Region):
    """CowMix: where smoothed noise is low, another mask for every image.

    Args:
        share: bounds of the share that comes from the partner, drawn evenly between them.
        width: bounds of the Gaussian's standard deviation as shares of the image's shorter side, drawn evenly on a
            logarithmic scale.
    """

    def __init__(self, share: tuple[float, float] = (0.2, 0.8), width: tuple[float, float] = (0.125, 0.5)):
        if not 0 < share[0] <= share[1] < 1:
            raise UserError(f"GaussianBlobs: share={tuple(share)}; give two rising shares above 0, below 1")
        if not 0 < width[0] <= width[1]:
            raise UserError(f"GaussianBlobs: width={tuple(width)}; give two rising shares above 0")
        self.share, self.width = tuple(share), tuple(width)

    @override
    def draw(self, shape, grid, generator):
        batch, size = shape[0], (shape[-2], shape[-1])
        wanted, spot = torch.rand(2, batch, dtype=torch.float64, generator=generator)
        share = self.share[0] + (self.share[1] - self.share[0]) * wanted
        smallest, largest = (math.log(width * min(size)) for width in self.width)
        sigma = (smallest + (largest - smallest) * spot).exp()[:, None, None]
        rows, columns = torch.fft.fftfreq(size[0], dtype=torch.float64), torch.fft.rfftfreq(size[1]).double()
        gauss = torch.exp(-2 * (math.pi * sigma) ** 2 * (rows[:, None] ** 2 + columns**2))
        noise = torch.randn(batch, *size, dtype=torch.float64, generator=generator)
        smooth = torch.fft.irfft2(torch.fft.rfft2(noise) * gauss, size)
        deviation, mean = torch.std_mean(smooth, dim=(1, 2), correction=0)
        limit = mean + deviation * math.sqrt(2) * torch.erfinv(2 * share - 1)
        return pixel_draw(smooth <= limit[:, None, None], batch, grid)


@MODELS.register_module()
class FMix(Mixing):
    """FMix, with the settings of its paper's classifiers."""

    def __init__(self, alpha: float = 1.0, decay: float = 3.0, prob: float = 1.0, seed: int = 0):
        super().__init__(FourierBlobs(alpha, decay), Area(), prob, seed)


@MODELS.register_module()
class CowMix(Mixing):
    """CowMix of labeled images, where the paper mixes what a teacher says of unlabeled ones."""

    def __init__(
        self,
        share: tuple[float, float] = (0.2, 0.8),
        width: tuple[float, float] = (0.125, 0.5),
        prob: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(GaussianBlobs(share, width), Area(), prob, seed)
