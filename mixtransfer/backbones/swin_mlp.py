"""Swin-MLP: Swin with a learned linear map over the positions of a window in place of attention.

Paper: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030; the network is in the code only:
microsoft/Swin-Transformer, ``models/swin_mlp.py`` (MIT). No installed library ships it.

Shapes: B batch, L = H·W tokens of a stage, C channels, w window side, N = w² positions, h heads (channel groups) of d.

Kept from the published code: a matrix for each head, with a bias for each head and position; zero padding instead of a
roll (w − s above and left of a map shifted by s), which enters the map like tokens and is cut off behind it; a stage
whose shorter side is no longer than the window is not shifted, and its window is that side at ``img_size``.
Different: any image size. Maps are padded with zeros at the bottom and right to whole windows, windows of padding alone
are not computed, and whether a stage shifts is decided by the map at hand, which at ``img_size`` is the published rule;
matrices of another window are resampled when loading (bicubic); one batched product over all windows replaces the
grouped convolution. No dense code is published: the maps are the un-normalized outputs of the stages.
Token labels are pooled to each output grid: no attention moves them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, pyramid
from mixtransfer.backbones.reported import Reported
from mixtransfer.backbones.swin import PATCH, PatchMerging, SwinTransformer
from mixtransfer.layers.channels_last import pad
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.linear import Mlp
from mixtransfer.layers.patches import PatchEmbed, grid_of
from mixtransfer.layers.residual import residual
from mixtransfer.registry import MODELS

__all__ = ["SwinMLP"]

README = "microsoft/Swin-Transformer, README"


@dataclass(frozen=True)
class Spec:
    """One published size: channels of the first stage, blocks and heads of each stage, window side, image side."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    img_size: int


class SpatialMLP(nn.Module):
    """y = W x + b over the positions of each window, one W for each group of channels."""

    def __init__(self, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        rows = heads * window * window
        self.weight = nn.Parameter(trunc_normal_(torch.empty(rows, window * window, 1), std=0.02))
        self.bias = nn.Parameter(torch.zeros(rows))

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """Return the mixed map (B, H, W, C); windows begin ``w − shift`` before the map, or at it without a shift."""
        batch, height, width, channels = x.shape
        w, heads = self.window, self.heads
        before = w - shift if shift else 0
        bottom, right = -(before + height) % w, -(before + width) % w
        x = pad(x, bottom, right, before, before)
        rows, columns = x.size(1) // w, x.size(2) // w
        # Positions last but one, all that one matrix acts on behind them: (h, N, B·windows·d).
        x = x.view(batch, rows, w, columns, w, heads, -1).permute(5, 2, 4, 0, 1, 3, 6).reshape(heads, w * w, -1)
        x = torch.baddbmm(self.bias.view(heads, w * w, 1), self.weight.view(heads, w * w, w * w), x)
        x = x.view(heads, w, w, batch, rows, columns, -1).permute(3, 4, 1, 5, 2, 0, 6)
        x = x.reshape(batch, rows * w, columns * w, channels)
        return x[:, before : before + height, before : before + width]


class Block(nn.Module):
    """x + spatial MLP(LN x), then x + MLP(LN x), each with stochastic depth."""

    def __init__(self, channels: int, heads: int, window: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.spatial_mlp = SpatialMLP(heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = drop_path

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """Return tokens (B, H, W, C)."""
        x = residual(x, lambda y: self.spatial_mlp(self.norm1(y), shift), self.drop_path, self.training)
        return residual(x, lambda y: self.mlp(self.norm2(y)), self.drop_path, self.training)


class Stage(nn.Module):
    """Blocks, every second one shifted by half a window, and the patch merging behind them (not in the last stage)."""

    def __init__(self, channels: int, heads: int, window: int, drop_paths: Sequence[float], merge: bool):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(Block(channels, heads, window, rate) for rate in drop_paths)
        self.downsample = PatchMerging(channels) if merge else None


def resize_positions(x: Tensor, window: int) -> Tensor:
    """Resample the positions of a window, (…, N₀) -> (…, N)."""
    side = math.isqrt(x.size(-1))
    grid = F.interpolate(x.reshape(1, -1, side, side), size=(window, window), mode="bicubic", align_corners=False)
    return grid.view(*x.shape[:-1], window * window)


def resize_spatial_mlp(value: Tensor, heads: int, window: int) -> Tensor:
    """Resample a spatial weight (h·N₀, N₀, 1) or bias (h·N₀) to another window, scaled to keep row sums."""
    if value.dim() == 1:
        return resize_positions(value.view(heads, -1), window).flatten()
    old = value.size(1)
    matrix = resize_positions(value.view(heads, old, old), window) * (old / window**2)
    return resize_positions(matrix.transpose(1, 2), window).transpose(1, 2).reshape(-1, window**2, 1)


@MODELS.register_module()
class SwinMLP(Backbone):
    """Swin-MLP with outputs at strides 4, 8, 16 and 32.

    Args:
        img_size: side that the windows are made for: a stage's window is no longer than its map's shorter side.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "swin_mlp"
    label_rule = "pooling"
    # The repository's configurations; parameters of the classifiers 20.4, 21.1, 22.7 and 60.7 million.
    archs = {
        "swin_mlp_tiny_c24_w8_256": Spec(96, (2, 2, 6, 2), (4, 8, 16, 32), window=8, img_size=256),
        "swin_mlp_tiny_c12_w8_256": Spec(96, (2, 2, 6, 2), (8, 16, 32, 64), window=8, img_size=256),
        "swin_mlp_tiny_c6_w8_256": Spec(96, (2, 2, 6, 2), (16, 32, 64, 128), window=8, img_size=256),
        "swin_mlp_base_w7_224": Spec(128, (2, 2, 18, 2), (4, 8, 16, 32), window=7, img_size=224),
    }
    reported = {
        "swin_mlp_tiny_c24_w8_256": Reported(20, 4.0, 79.4, sources=(README,)),
        "swin_mlp_tiny_c12_w8_256": Reported(21, 4.0, 79.6, sources=(README,)),
        "swin_mlp_tiny_c6_w8_256": Reported(23, 4.0, 79.7, sources=(README,)),
        "swin_mlp_base_w7_224": Reported(61, 10.4, 81.3, sources=(README,)),
    }
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid([spec.channels * 2**i for i in range(len(spec.depths))])

    def build(self, spec: Spec, *, img_size: tuple[int, int]) -> None:
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        self.patch_embed = PatchEmbed(self.in_channels, channels[0], PATCH, nn.LayerNorm(channels[0]))
        rates = iter(self.drop_path_rates())
        self.layers = nn.ModuleList(
            Stage(
                channels[i],
                spec.heads[i],
                min(spec.window, *grid_of(img_size, PATCH * 2**i)),
                [next(rates) for _ in range(depth)],
                merge=i < len(spec.depths) - 1,
            )
            for i, depth in enumerate(spec.depths)
        )
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1])
        self.apply(init_linear)

    def trunk(self, images, labels, count):
        x, size = self.patch_embed(images)
        for index, stage in enumerate(self.layers[:count]):
            x = x.unflatten(1, size)
            shift = stage.window // 2 if min(size) > stage.window else 0
            for number, block in enumerate(stage.blocks):
                x = self.checkpointed(block, x, shift if number % 2 else 0)
            yield x, None
            if index < count - 1:
                x, size = stage.downsample(x.flatten(1, 2), size)

    stage_modules = SwinTransformer.stage_modules
    layer_of = SwinTransformer.layer_of

    def resize_loaded(self, state):
        resized = dict(state)
        for name, module in self.named_modules():
            if not isinstance(module, SpatialMLP):
                continue
            for key, own in ((f"{name}.weight", module.weight), (f"{name}.bias", module.bias)):
                value = state.get(key)
                # Another number of heads is left to the loader to refuse.
                if value is not None and value.shape != own.shape and _window(value, module.heads):
                    resized[key] = resize_spatial_mlp(value, module.heads, module.window)
        return resized


def _window(value: Tensor, heads: int) -> int:
    """Return the window side of a spatial weight or bias with ``heads`` heads, or 0 where it is none of these."""
    side = math.isqrt(value.size(0) // heads)
    return side if value.shape in ((heads * side**2, side**2, 1), (heads * side**2,)) else 0
