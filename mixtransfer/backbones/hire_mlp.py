"""Hire-MLP: a pyramid of 1 × 1 convolutions that mix neighboring rows and columns after regrouping them as channels.

Paper: Guo et al., "Hire-MLP: Vision MLP via Hierarchical Rearrangement", CVPR 2022, arXiv 2108.13341. Code:
ggjy/Hire-Wave-MLP.pytorch (MIT; its mmseg folder Apache-2.0). No installed library ships the network.

Shapes: B batch, C channels, H × W a stage's map, p rows of a region, n = ceil(H / p) regions; maps are (B, H, W, C)
inside.

Kept from the published code: the circular padding up to whole regions takes rows of the map that is already shifted;
the weights of the three branches lie channel-major, (C, 3); BatchNorm everywhere, over the whole batch also under
stochastic depth; the patch embedding floors, to (H + 1) // 4 rows, later stages ceil.
Different: shift and padding are one gather, so that maps lower than a step or a region work too (rows are
taken modulo H, where the published padding stops); images lower than 3 pixels are padded to 3.

No attention: token labels are pooled to each output.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixtransfer.backbones.base import Backbone, pyramid
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.channels_last import Conv, Pointwise
from mixtransfer.layers.cpu import in_chunks
from mixtransfer.layers.init import trunc_normal_
from mixtransfer.layers.linear import gelu, linear
from mixtransfer.layers.residual import add_, keep_mask
from mixtransfer.layers.tables import table
from mixtransfer.registry import MODELS

__all__ = ["HireMLP"]

README = "ggjy/Hire-Wave-MLP.pytorch, README"
PIXELS = (4, 3, 3, 2)
STEP_STRIDES = (2, 2, 3, 2)
STEP_DILATIONS = (2, 2, 1, 1)
MIN_SIDE = 3


@dataclass(frozen=True)
class Spec:
    """One published size: blocks and channels of each stage."""

    depths: tuple[int, ...]
    channels: tuple[int, ...]


@table
def region_lines(side: int, pixel: int, step: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return the lines of a map that its regions are made of, (n·p,), and where a map's lines are among them, (side,).

    A map is shifted by ``step`` and padded at its end with its own first lines to n·p. None where nothing changes.
    """
    regions = -(-side // pixel)
    if step % side == 0 and regions * pixel == side:
        return None
    place = torch.arange(regions * pixel, device=device)
    return (place - step) % side, (place[:side] + step) % side


class HireMixer(nn.Module):
    """Sum of a row, a column and a channel branch, weighted for each image and channel, then a projection."""

    def __init__(self, channels: int, pixel: int, step: int):
        super().__init__()
        self.pixel, self.step = pixel, step
        half, wide = channels // 2, channels * pixel
        self.mlp_h1 = nn.Conv2d(wide, half, 1, bias=False)
        self.mlp_h1_norm = nn.BatchNorm2d(half)
        self.mlp_h2 = nn.Conv2d(half, wide, 1)
        self.mlp_w1 = nn.Conv2d(wide, half, 1, bias=False)
        self.mlp_w1_norm = nn.BatchNorm2d(half)
        self.mlp_w2 = nn.Conv2d(half, wide, 1)
        self.mlp_c = Pointwise(channels, channels)
        convs = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, 3 * channels, 1)
        self.reweight = nn.Sequential(OrderedDict(fc1=convs[0], act=nn.GELU(), fc2=convs[1]))
        self.proj = Pointwise(channels, channels)

    def mix_lines(self, x: Tensor, axis: int, first: nn.Conv2d, norm: nn.Module, second: nn.Conv2d) -> Tensor:
        """Mix the p rows (axis 1) or columns (axis 2) of each region of (B, H, W, C) with all channels; same shape."""
        lines = region_lines(x.size(axis), self.pixel, self.step, x.device)
        x = (x if lines is None else x.index_select(axis, lines[0])).unflatten(axis, (-1, self.pixel))
        if axis == 1:
            x = x.transpose(2, 3)  # (B, n, W, p, C), as (B, H, n, p, C) along columns
        # Published channel-major, (C, p); here the weights are turned, which are smaller than the map.
        weight = first.weight.view(len(first.weight), -1, self.pixel).transpose(1, 2).flatten(1)
        x = F.relu(batch_normalized(norm, linear(x.flatten(3), weight, None)))
        weight = second.weight.view(-1, self.pixel, second.in_channels).transpose(0, 1).flatten(0, 1)
        x = linear(x, weight, second.bias.view(-1, self.pixel).t().flatten()).unflatten(3, (self.pixel, -1))
        if axis == 1:
            x = x.transpose(2, 3)
        x = x.flatten(axis, axis + 1)
        return x if lines is None else x.index_select(axis, lines[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map (B, H, W, C)."""
        rows = self.mix_lines(x, 1, self.mlp_h1, self.mlp_h1_norm, self.mlp_h2)
        columns = self.mix_lines(x, 2, self.mlp_w1, self.mlp_w1_norm, self.mlp_w2)
        own = self.mlp_c(x)
        mean = sum(branch.mean(dim=(1, 2)) for branch in (rows, columns, own))
        shares = self.reweight(mean[:, :, None, None]).view(x.size(0), 1, 1, -1, 3).softmax(dim=4)
        return self.proj(rows * shares[..., 0] + columns * shares[..., 1] + own * shares[..., 2])


class PointwiseMlp(nn.Module):
    """1 × 1 convolution, GELU, 1 × 1 convolution, on the last axis."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = Pointwise(channels, hidden)
        self.fc2 = Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C)."""
        return in_chunks(lambda y: self.fc2(gelu(self.fc1(y))), x, self.fc1.out_channels)


class Block(nn.Module):
    """x + mixer(BN x), then x + MLP(BN x), each with stochastic depth."""

    def __init__(self, channels: int, pixel: int, step: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.attn = HireMixer(channels, pixel, step)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = PointwiseMlp(channels, 4 * channels)
        self.drop_path = drop_path

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        # Every sample's branch is computed, dropped or not: BatchNorm's statistics are those of the whole batch.
        if self.training and self.drop_path:
            branch = branch * keep_mask(len(x), self.drop_path, x)
        return add_(x, branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape (B, H, W, C)."""
        x = self._add(x, self.attn(batch_normalized(self.norm1, x)))
        return self._add(x, self.mlp(batch_normalized(self.norm2, x)))


class ConvEmbed(nn.Module):
    """Strided convolution, BatchNorm, ReLU: the patch embedding and what opens each later stage."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = Conv(in_channels, channels, kernel, stride, padding)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map, (B, h, w, C') for (B, H, W, C)."""
        return F.relu(batch_normalized(self.norm, self.proj(x)))


def batch_normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm over the channels of (B, C, H, W) to a map (B, H, W, C)."""
    return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@MODELS.register_module()
class HireMLP(Backbone):
    """Hire-MLP with outputs at strides 4, 8, 16 and 32, each with a BatchNorm of its own.

    Args:
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "hire_mlp"
    label_rule = "pooling"
    # Table 1 of the paper; parameters of the classifiers 18.0, 33.1, 58.2 and 95.7 million.
    archs = {
        "hire_mlp_tiny": Spec((2, 2, 4, 2), (64, 128, 320, 512)),
        "hire_mlp_small": Spec((3, 4, 10, 3), (64, 128, 320, 512)),
        "hire_mlp_base": Spec((4, 6, 24, 3), (64, 128, 320, 512)),
        "hire_mlp_large": Spec((4, 6, 24, 3), (96, 192, 384, 768)),
    }
    reported = {
        "hire_mlp_tiny": Reported(18, 2.1, 79.7, sources=(README,)),
        "hire_mlp_small": Reported(33, 4.2, 82.1, sources=(README,)),
        "hire_mlp_base": Reported(58, 8.1, 83.2, sources=(README,)),
        "hire_mlp_large": Reported(96, 13.4, 83.8, sources=(README,)),
    }
    # Numbered by the position in `network`, as published.
    dense_only = (r"norm[0246]\..+",)
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid(spec.channels)

    def build(self, spec: Spec) -> None:
        self.patch_embed = ConvEmbed(self.in_channels, spec.channels[0], 7, 4, 2)
        rates = iter(self.drop_path_rates())
        self.network = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(spec.channels, spec.depths, strict=True)):
            if stage:
                self.network.append(ConvEmbed(spec.channels[stage - 1], channels, 3, 2, 1))
            steps = [index % STEP_STRIDES[stage] * STEP_DILATIONS[stage] for index in range(depth)]
            self.network.append(nn.Sequential(*(Block(channels, PIXELS[stage], step, next(rates)) for step in steps)))
        if self.with_embedding:
            self.norm = nn.BatchNorm2d(spec.channels[-1])
        self.apply(_init)

    def published_norm(self, index, channels):
        return f"norm{2 * index}", nn.BatchNorm2d(channels)

    def trunk(self, images, labels, count):
        short = [max(MIN_SIDE - side, 0) for side in images.shape[2:]]
        images = F.pad(images, (0, short[1], 0, short[0])) if any(short) else images
        x = self.patch_embed(images.permute(0, 2, 3, 1).contiguous())
        for position, part in enumerate(self.network[: 2 * count - 1]):
            if position % 2:
                x = part(x)
                continue
            for block in part:
                x = self.checkpointed(block, x)
            yield x, None

    def normalized(self, index, x):
        # The published norms stay plain BatchNorm2d, on (B, C, H, W): `sync_bn` would replace a class that turns its
        # maps by one that does not.
        norm = getattr(self, self.norm_names.get(index, ""), None)
        return batch_normalized(norm, x) if isinstance(norm, _BatchNorm) else super().normalized(index, x)

    def embedded(self, x):
        return batch_normalized(self.norm, x)

    def stage_modules(self):
        # A stage starts with the convolution that makes its map.
        stages = (self.network[max(2 * i - 1, 0) : 2 * i + 1] for i in range(len(self.depths)))
        return [[self.patch_embed], *(list(stage) for stage in stages)]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] != "network":
            return 0 if parts[0] == "patch_embed" else self.depth + 1
        stage, opens = (int(parts[1]) + 1) // 2, int(parts[1]) % 2
        return sum(self.depths[:stage]) + (0 if opens else int(parts[2])) + 1


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
