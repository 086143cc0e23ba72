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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, check_out_indices
from mixtransfer.backbones.keys import KeyMap
from mixtransfer.layers.drop_path import drop_path_rates, keep_mask
from mixtransfer.layers.labels import image_label
from mixtransfer.layers.patches import pad_to_multiple
from mixtransfer.registry import MODELS

__all__ = ["ConvMixer"]

#: Positions up to which a product with the N × N matrix of a kernel is faster than its convolution.
MATRIX_POSITIONS = 256


@dataclass(frozen=True)
class Spec:
    """One published size; ``shared``: one kernel for all channels."""

    channels: int
    depth: int
    patch: int
    kernel: int = 9
    activation: type[nn.Module] = nn.GELU
    shared: bool = False


# A compiled graph takes the table as a constant; it cannot trace a cache.
@torch.compiler.assume_constant_result
def kernel_places(size: tuple[int, int], kernel: int, device: torch.device) -> Tensor:
    """Return the entry of a flat k × k kernel that links output i to input j, (N, N); k² where none does."""
    return _make_kernel_places(size, kernel, device)


# Tables made in inference mode could not be used in training.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _make_kernel_places(size: tuple[int, int], kernel: int, device: torch.device) -> Tensor:
    y, x = (torch.arange(side, device=device) for side in size)
    dy, dx = (side[None, :] - side[:, None] + kernel // 2 for side in (y, x))
    dy, dx = dy[:, None, :, None], dx[None, :, None, :]
    inside = (dy >= 0) & (dy < kernel) & (dx >= 0) & (dx < kernel)
    return torch.where(inside, dy * kernel + dx, kernel**2).flatten(2).flatten(0, 1)


class SharedConv(nn.Conv2d):
    """One k × k convolution for all channels, zeros around the map: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, kernel: int):
        super().__init__(1, 1, kernel, padding=kernel // 2)

    def matrix(self, size: tuple[int, int]) -> Tensor:
        """Return the convolution of maps of ``size`` as a matrix (N, N), rows are outputs."""
        entries = F.pad(self.weight.flatten(), (0, 1))
        return entries[kernel_places(size, self.kernel_size[0], self.weight.device)]

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Return the filtered map; ``gate`` (B, N, N) multiplies what position i takes from j."""
        size = (x.size(2), x.size(3))
        if gate is None and size[0] * size[1] > MATRIX_POSITIONS:
            channels = x.size(1)
            weight, bias = self.weight.expand(channels, -1, -1, -1), self.bias.expand(channels)
            return F.conv2d(x, weight, bias, padding=self.padding, groups=channels)
        matrix = self.matrix(size) if gate is None else gate * self.matrix(size)
        return (x.flatten(2) @ matrix.transpose(-1, -2) + self.bias).unflatten(2, size)


class Block(nn.Module):
    """x + BN(GELU(mix x)), then BN(GELU(project x))."""

    def __init__(self, spec: Spec, drop_path: float):
        super().__init__()
        channels, kernel = spec.channels, spec.kernel
        depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.mix = SharedConv(kernel) if spec.shared else depthwise
        self.norm1 = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.activation = spec.activation()
        self.drop_path = drop_path

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Return a map of the same shape (B, C, H, W); ``gate`` is one of :class:`SharedConv`."""
        branch = self.norm1(self.activation(self.mix(x) if gate is None else self.mix(x, gate)))
        # Every sample's branch is computed, dropped or not: BatchNorm's statistics are those of the whole batch.
        if self.training and self.drop_path:
            branch = branch * keep_mask(len(x), self.drop_path, x)
        return self.norm2(self.activation(self.project(x + branch)))


class Stem(nn.Module):
    """BN(GELU(patches)), sides padded to whole patches."""

    def __init__(self, in_channels: int, spec: Spec):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, spec.channels, spec.patch, spec.patch)
        self.norm = nn.BatchNorm2d(spec.channels)
        self.activation = spec.activation()

    def forward(self, images: Tensor) -> Tensor:
        """Return the map (B, C, H, W)."""
        return self.norm(self.activation(self.proj(pad_to_multiple(images, self.proj.stride[0]))))


@MODELS.register_module()
class ConvMixer(Backbone):
    """ConvMixer; outputs have the stride of a patch, a neck makes their pyramid.

    Args:
        arch: one of ``archs``.
        in_channels: channels of the images.
        img_size: taken for the sake of the other families; nothing here depends on it.
        out_indices: blocks whose maps are returned; default four evenly spaced ones.
        drop_path_rate: stochastic depth of the last block's mixing, rising linearly from 0.
        frozen_stages: −1 freezes nothing, 0 the patch embedding, n also the first n blocks.
        with_cp: recompute activations in the backward pass.
        with_embedding: allow ``embed``; it needs no layers of its own.
        token_classifier: arguments of :class:`~mixtransfer.backbones.base.TokenClassifier`, or None.
        init_cfg: OpenMMLab initialization, e.g. ``dict(type="mixtransfer.Pretrained", checkpoint=...)``.
    """

    family = "convmixer"
    label_rule = "pooling"
    # Table 1 of the ConvMixer paper, by timm's names, and OAMixer's repository, with and without its --no-share-conv.
    archs: ClassVar = {
        "convmixer_1536_20": Spec(1536, 20, 7),
        "convmixer_768_32": Spec(768, 32, 7, kernel=7, activation=nn.ReLU),
        "convmixer_1024_20_ks9_p14": Spec(1024, 20, 14),
        "oamixer_convmixer_s32": Spec(512, 8, 32, shared=True),
        "oamixer_convmixer_s16": Spec(512, 8, 16, shared=True),
        "oamixer_convmixer_s32_depthwise": Spec(512, 8, 32),
        "oamixer_convmixer_s16_depthwise": Spec(512, 8, 16),
    }

    def __init__(
        self,
        arch: str = "convmixer_1024_20_ks9_p14",
        *,
        in_channels: int = 3,
        img_size: int | tuple[int, int] | None = None,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        with_embedding: bool = False,
        token_classifier: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(arch, with_cp=with_cp, with_embedding=with_embedding, init_cfg=init_cfg)
        spec = self.archs[arch]
        self.depth, self.embed_channels = spec.depth, spec.channels
        if out_indices is None:
            out_indices = [spec.depth * i // 4 - 1 for i in range(1, 5)]
        self.out_indices = check_out_indices(out_indices, spec.depth, arch)
        self.stem = Stem(in_channels, spec)
        self.blocks = nn.ModuleList(Block(spec, rate) for rate in drop_path_rates(drop_path_rate, spec.depth))
        self.finish(
            [spec.channels] * len(self.out_indices),
            [spec.patch] * len(self.out_indices),
            frozen_stages=frozen_stages,
            token_classifier=token_classifier,
        )

    def dense(self, images, labels):  # noqa: D102
        x, maps = self.stem(images), []
        for index, block in enumerate(self.blocks[: max(self.out_indices, default=-1) + 1]):
            x = self.checkpointed(block, x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps), None

    def embedding(self, images, labels):  # noqa: D102
        x = self.stem(images)
        for block in self.blocks:
            x = self.checkpointed(block, x)
        return x.mean(dim=(2, 3)), None if labels is None else image_label(labels)

    def stage_modules(self):  # noqa: D102
        return [[self.stem], *([block] for block in self.blocks)]

    def layer_of(self, name):  # noqa: D102
        parts = name.split(".")
        if parts[0] == "blocks":
            # The last norm is part of a block here, and counts with what follows the blocks, as it does elsewhere.
            last = int(parts[1]) == self.depth - 1 and parts[2] == "norm2"
            return int(parts[1]) + 1 + last
        return 0 if parts[0] == "stem" else self.depth + 1


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from timm.models.convmixer import ConvMixer as Network

    if spec.shared:
        return None
    size = (spec.channels, spec.depth, spec.kernel, spec.patch)
    return Network(*size, in_chans=channels, num_classes=classes or 0, act_layer=spec.activation)


_STEM = (("stem.0.{rest}", "stem.proj.{rest}"), ("stem.2.{rest}", "stem.norm.{rest}"))
ConvMixer.formats = {
    "official": KeyMap(
        renames=(
            *_STEM,
            ("blocks.{i}.block.0.fn.0.conv.{rest}", "blocks.{i}.mix.{rest}"),
            ("blocks.{i}.block.0.fn.2.{rest}", "blocks.{i}.norm1.{rest}"),
            ("blocks.{i}.block.1.{rest}", "blocks.{i}.project.{rest}"),
            ("blocks.{i}.block.3.{rest}", "blocks.{i}.norm2.{rest}"),
        ),
        derived=(r"blocks\.\d+\.block\.0\.fn\.0\.mask_scale",),
    ),
    "timm": KeyMap(
        renames=(
            *_STEM,
            ("blocks.{i}.0.fn.0.{rest}", "blocks.{i}.mix.{rest}"),
            ("blocks.{i}.0.fn.2.{rest}", "blocks.{i}.norm1.{rest}"),
            ("blocks.{i}.1.{rest}", "blocks.{i}.project.{rest}"),
            ("blocks.{i}.3.{rest}", "blocks.{i}.norm2.{rest}"),
        ),
        network=_timm,
    ),
}
