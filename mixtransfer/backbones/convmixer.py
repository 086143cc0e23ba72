"""ConvMixer: patches, mixed by a large depthwise convolution, channels by a 1 × 1 convolution, at one scale throughout.

Papers: Trockman and Kolter, "Patches Are All You Need?", TMLR 2023, arXiv 2201.09792; Kang et al., "OAMixer:
Object-aware Mixing Layer for Vision Transformers", CVPRW 2022, arXiv 2212.06595, whose networks share one kernel among
all channels. Code: locuslab/convmixer (MIT) and alinlab/OAMixer (Apache-2.0); timm ships the former. timm's layers have
no stochastic depth, no padding and no shared kernel, so the network is written here.

Shapes: B batch, C channels, H × W patches, N = H·W.

Kept from the published code: GELU (ReLU in 768/32) before each BatchNorm, the mean of the last map, not normalized
further, as the image embedding.
Different: sides that a patch does not divide are padded with zeros. A shared kernel is one product with its N × N
matrix on small maps and a depthwise convolution on larger ones, where the published code convolves B·C images of one
channel. Stochastic depth, which none of these networks was trained with, drops the mixing branch. No dense code is
published: the maps are those after the blocks of ``out_indices``.

Patch masks: ``Block.forward`` takes a ``gate`` on what positions take from each other, which
:mod:`mixtransfer.pretrain.oamixer` sets; published ``mask_scale`` entries are its own, the network without masks has
none. No attention: token labels are pooled to each output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.compiling import constant_in_graphs
from mixtransfer.layers.cpu import may_overwrite, prefers_rows
from mixtransfer.layers.depthwise import depthwise
from mixtransfer.layers.linear import gelu
from mixtransfer.layers.patches import pad_to_multiple
from mixtransfer.layers.residual import add_, keep_mask
from mixtransfer.layers.tables import table
from mixtransfer.registry import MODELS

__all__ = ["ConvMixer"]

QUOTED = "arXiv 2201.09792 as quoted by Rishit-dagli/ConvMixer-torch2tf, README"
#: Positions up to which a product with the N × N matrix of a kernel is faster than its convolution.
MATRIX_POSITIONS = 512


@dataclass(frozen=True)
class Spec:
    """One published size; ``shared``: one kernel for all channels; ``relu``: ReLU in place of GELU."""

    channels: int
    depth: int
    patch: int
    kernel: int = 9
    shared: bool = False
    relu: bool = False

    @property
    def activation(self) -> type[nn.Module]:
        """Class of the activations."""
        return nn.ReLU if self.relu else nn.GELU


# A compiled graph takes the table as a constant; it cannot trace a cache.
@constant_in_graphs
def kernel_places(size: tuple[int, int], kernel: int, device: torch.device) -> Tensor:
    """Return the entry of a flat k × k kernel that links output i to input j, (N, N); k² where none does."""
    return _make_kernel_places(size, kernel, device)


@table
def _make_kernel_places(size: tuple[int, int], kernel: int, device: torch.device) -> Tensor:
    y, x = (torch.arange(side, device=device) for side in size)
    dy, dx = (side[None, :] - side[:, None] + kernel // 2 for side in (y, x))
    dy, dx = dy[:, None, :, None], dx[None, :, None, :]
    inside = (dy >= 0) & (dy < kernel) & (dx >= 0) & (dx < kernel)
    return torch.where(inside, dy * kernel + dx, kernel**2).flatten(2).flatten(0, 1)


class Mixer(nn.Module):
    """k × k convolution with a kernel for each channel, or one for all of them: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, kernel: int, shared: bool):
        super().__init__()
        self.shared = shared
        width = 1 if shared else channels
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)

    def matrix(self, size: tuple[int, int]) -> Tensor:
        """Return the convolution of maps of ``size`` with the shared kernel as a matrix (N, N), rows are outputs."""
        weight = self.conv.weight
        return F.pad(weight.flatten(), (0, 1))[kernel_places(size, weight.size(2), weight.device)]

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Return the filtered map; ``gate`` (B, N, N) multiplies what position i takes from j by the shared kernel."""
        weight, bias = self.conv.weight, self.conv.bias
        if not self.shared:
            return depthwise(x, weight, bias)
        channels, size = x.size(1), (x.size(2), x.size(3))
        if gate is None and size[0] * size[1] > MATRIX_POSITIONS:
            return depthwise(x, weight.expand(channels, -1, -1, -1), bias.expand(channels))
        x = x.flatten(2)
        if gate is None:
            x = F.linear(x, self.matrix(size), bias.expand(x.size(2)))
        else:
            x = torch.baddbmm(bias.view(1, 1, 1), x, (gate * self.matrix(size)).transpose(1, 2))
        return x.unflatten(2, size)


def normed(x: Tensor, activation: nn.Module, norm: nn.BatchNorm2d) -> Tensor:
    """Return BN(activation(x)) of a map that nobody else reads: without gradient the activation is in its place."""
    if torch.is_grad_enabled():
        return norm(activation(x))
    if isinstance(activation, nn.GELU):
        return norm(gelu(x))
    return norm(F.relu_(x) if may_overwrite(x) else F.relu(x))


class Residual(nn.Module):
    """x + BN(GELU(mix x)), with stochastic depth."""

    def __init__(self, spec: Spec, drop_path: float):
        super().__init__()
        mixer = Mixer(spec.channels, spec.kernel, spec.shared)
        self.fn = nn.Sequential(mixer, spec.activation(), nn.BatchNorm2d(spec.channels))
        self.drop_path = drop_path

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """Return a map of the same shape (B, C, H, W)."""
        mixer, activation, norm = self.fn
        branch = normed(mixer(x, gate), activation, norm)
        # Every sample's branch is computed, dropped or not: BatchNorm's statistics are those of the whole batch.
        if self.training and self.drop_path:
            branch = branch * keep_mask(len(x), self.drop_path, x)
        return add_(x, branch)


class Block(nn.Module):
    """The residual mixing, then BN(GELU(1 × 1 convolution))."""

    def __init__(self, spec: Spec, drop_path: float):
        super().__init__()
        channels = spec.channels
        self.block = nn.Sequential(
            Residual(spec, drop_path), nn.Conv2d(channels, channels, 1), spec.activation(), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Return a map of the same shape (B, C, H, W); ``gate`` is one of :class:`Mixer`."""
        residual, project, activation, norm = self.block
        return normed(project(residual(x, gate)), activation, norm)


@MODELS.register_module()
class ConvMixer(Backbone):
    """ConvMixer; outputs have the stride of a patch, a neck makes their pyramid.

    Args:
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "convmixer"
    label_rule = "pooling"
    # Table 1 of the ConvMixer paper, by timm's names, and OAMixer's repository, with and without its --no-share-conv.
    archs = {
        "convmixer_1536_20": Spec(1536, 20, 7),
        "convmixer_768_32": Spec(768, 32, 7, kernel=7, relu=True),
        "convmixer_1024_20_ks9_p14": Spec(1024, 20, 14),
        "oamixer_convmixer_s32": Spec(512, 8, 32, shared=True),
        "oamixer_convmixer_s16": Spec(512, 8, 16, shared=True),
        "oamixer_convmixer_s32_depthwise": Spec(512, 8, 32),
        "oamixer_convmixer_s16_depthwise": Spec(512, 8, 16),
    }
    reported = {
        "convmixer_1536_20": Reported(51.6, None, 81.37, sources=(QUOTED,)),
        "convmixer_768_32": Reported(21.1, None, 80.16, sources=(QUOTED,)),
        "convmixer_1024_20_ks9_p14": Reported(24.4, None, 76.94, sources=(QUOTED,)),
    }

    # OAMixer's masks, which a network without them has no use for.
    official = KeyMap(derived=(r"blocks\.\d+\.block\.0\.fn\.0\.mask_scale",))

    def outputs(self, spec):
        return [(spec.channels, spec.patch)] * spec.depth

    def build(self, spec: Spec) -> None:
        self.stem = nn.Sequential(
            nn.Conv2d(self.in_channels, spec.channels, spec.patch, spec.patch),
            spec.activation(),
            nn.BatchNorm2d(spec.channels),
        )
        self.blocks = nn.ModuleList(Block(spec, rate) for rate in self.drop_path_rates())

    def embed_patches(self, images: Tensor) -> Tensor:
        """Return the map of patches (B, C, H, W), sides padded to whole ones."""
        x = self.stem(pad_to_multiple(images, self.stem[0].stride[0]))
        if not prefers_rows(x, self.archs[self.arch].kernel):
            return x
        return x.contiguous(memory_format=torch.channels_last)

    def trunk(self, images, labels, count):
        x = self.embed_patches(images)
        for block in self.blocks[:count]:
            x = self.checkpointed(block, x)
            yield x.permute(0, 2, 3, 1), None

    def embedded(self, x):
        return x

    def stage_modules(self):
        return [[self.stem], *([block] for block in self.blocks)]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] == "blocks":
            # The last norm is part of a block here, and counts with what follows the blocks, as it does elsewhere.
            last = int(parts[1]) == self.depth - 1 and parts[2:4] == ["block", "3"]
            return int(parts[1]) + 1 + last
        return 0 if parts[0] == "stem" else self.depth + 1
