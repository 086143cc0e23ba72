"""PyramidTNT: words inside patches as in TNT, behind a convolutional stem and in four stages of shrinking resolution.

Paper: Han et al., "PyramidTNT: Improved Transformer-in-Transformer Baselines with Pyramid Architecture", CVPR 2022
workshops, arXiv 2201.00978. Code: huawei-noah/Efficient-AI-Backbones, ``tnt_pytorch/pyramid_tnt.py`` (Apache-2.0).

Shapes: B batch, (H, W) the grid of patches of a stage, N = H·W, D channels of a patch, 16 words of c channels in a
patch, M keys after spatial reduction, h heads, K label channels.

Kept from the published code: the first block of a stage reads the words, and the second too in stages of more than six
blocks; inner norms are over all words of a patch together; keys come from average pooling that drops what does not fill
a cell; all blocks of a stage share one learned bias for each pair of a patch and a key; merging of words pads odd grids
with zeros and does not see beyond its group of patches; inner branches drop their path patch by patch.
Different: the published network runs at one size, whose sides 64 divides. Here images are padded to multiples of 8, odd
grids are merged as the published modules would, a cell of keys is never larger than the map, and the position tables
are resampled to the grid (bicubic, the pairwise one over its patches, then over its keys). Words never leave their
patch, so labels live on patches: they move in the outer attention and are pooled where patches merge. No dense code is
published with these networks: the maps are the un-normalized patches at the end of each stage, strides 8 to 64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend, attend_windows
from mixtransfer.layers.eval_cache import EvalCache
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, Mlp, linear
from mixtransfer.layers.patches import grid_of, pad_to_multiple
from mixtransfer.layers.positions import resize_position_table, resize_square_table
from mixtransfer.layers.residual import residual, residual_with_labels
from mixtransfer.registry import MODELS

__all__ = ["PyramidTNT"]

README = "huawei-noah/Efficient-AI-Backbones, tnt_pytorch/readme.md"
STRIDE, WORDS = 8, 16
WIDENING = (1, 2, 4, 4)
REDUCTIONS = (4, 2, 1, 1)
DEEP = 6  # a stage of more blocks reads the words twice


@dataclass(frozen=True)
class Spec:
    """One published size: channels and heads of patches and of words in the first stage, blocks of each stage."""

    channels: int
    heads: int
    inner_channels: int
    inner_heads: int
    depths: tuple[int, ...]
    img_size: int = 256


def key_cell(size: tuple[int, int], reduction: int) -> tuple[int, int]:
    """Return the sides of the cell of patches that is pooled into one key: the reduction, or the map if smaller."""
    return min(reduction, size[0]), min(reduction, size[1])


def key_grid(size: tuple[int, int], reduction: int) -> tuple[int, int]:
    """Return the grid of keys of a map of patches."""
    cell = key_cell(size, reduction)
    return size[0] // cell[0], size[1] // cell[1]


def resize_pair_table(
    table: Tensor, old: tuple[tuple[int, int], tuple[int, int]], new: tuple[tuple[int, int], tuple[int, int]]
) -> Tensor:
    """Resample a table of (patch, key) pairs (1, h, N, M) from grids ``old`` to ``new``, bicubic over one, then other.

    Args:
        table: one entry a pair.
        old: the grids of patches and of keys that the table is for.
        new: the grids to make it for.
    """
    if old == new:
        return table
    table = table.transpose(2, 3).flatten(1, 2).unflatten(2, old[0])
    table = F.interpolate(table, size=new[0], mode="bicubic", align_corners=False)
    table = table.flatten(2).unflatten(1, (-1, old[1][0] * old[1][1]))[0].transpose(1, 2).contiguous()
    table = F.interpolate(table.unflatten(2, old[1]), size=new[1], mode="bicubic", align_corners=False)
    return table.flatten(2).unsqueeze(0)


class Attention(nn.Module):
    """Multi-head attention, over all tokens or to keys pooled by ``reduction``."""

    def __init__(self, channels: int, heads: int, reduction: int = 1):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = Linear(channels, channels, bias=False)
        self.kv = Linear(channels, 2 * channels, bias=False)
        self.proj = Linear(channels, channels)
        if reduction > 1:
            self.linear = Linear(channels, channels)
            self.norm = nn.LayerNorm(channels)

    def project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of tokens ``x`` and keys and values of tokens ``source``, (B, h, ·, d) each."""
        if source is x:
            qkv = linear(x, torch.cat([self.q.weight, self.kv.weight]), None)
            return qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def words(self, x: Tensor) -> Tensor:
        """Return new words (B·N, 16, c) of each patch."""
        out, _ = attend(*self.project(x, x))
        return self.proj(out.transpose(1, 2).flatten(2))

    def forward(
        self, x: Tensor, size: tuple[int, int], bias: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (B, N, D) and the labels each of them attended to (B, N, K)."""
        source = x
        if self.reduction > 1:
            cell = key_cell(size, self.reduction)
            source = F.avg_pool2d(x.transpose(1, 2).unflatten(2, size), cell).flatten(2).transpose(1, 2)
            source = self.norm(self.linear(source))
            if labels is not None:
                labels = F.avg_pool2d(labels_to_map(labels, size), cell).flatten(2).transpose(1, 2)
        out, attended = attend_windows(*self.project(x, source), bias, labels)
        return self.proj(out.transpose(1, 2).flatten(2)), attended


class Block(nn.Module):
    """Words among each other and into their patch (``inner`` blocks), then attention and MLP over patches."""

    def __init__(self, spec: Spec, stage: int, inner: bool, drop_path: float):
        super().__init__()
        wide, reduction = WIDENING[stage], REDUCTIONS[stage]
        channels, inner_channels = wide * spec.channels, wide * spec.inner_channels
        self.inner = inner
        if inner:
            self.inner_norm1 = nn.LayerNorm(WORDS * inner_channels)
            self.inner_attn = Attention(inner_channels, wide * spec.inner_heads)
            self.inner_norm2 = nn.LayerNorm(WORDS * inner_channels)
            self.inner_mlp = Mlp(inner_channels, 4 * inner_channels)
            self.proj_norm1 = nn.LayerNorm(WORDS * inner_channels)
            self.proj = Linear(WORDS * inner_channels, channels, bias=False)
            self.proj_norm2 = nn.LayerNorm(channels)
        self.outer_norm1 = nn.LayerNorm(channels)
        self.outer_attn = Attention(channels, wide * spec.heads, reduction)
        self.outer_norm2 = nn.LayerNorm(channels)
        self.outer_mlp = Mlp(channels, 4 * channels)
        self.drop_path = drop_path

    def forward(
        self, words: Tensor, x: Tensor, size: tuple[int, int], bias: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return words (B·N, 16, c), patches (B, N, D) and their labels (B, N, K) or None."""
        rate, training = self.drop_path, self.training
        if self.inner:
            words = residual(words, lambda y: self.inner_attn.words(_norm_patch(self.inner_norm1, y)), rate, training)
            words = residual(words, lambda y: self.inner_mlp(_norm_patch(self.inner_norm2, y)), rate, training)
            x = x + self.proj_norm2(self.proj(self.proj_norm1(words.reshape(x.size(0), x.size(1), -1))))
        attention = lambda y, rows: self.outer_attn(self.outer_norm1(y), size, bias, rows)  # noqa: E731
        x, labels = residual_with_labels(x, labels, attention, rate, training)
        return words, residual(x, lambda y: self.outer_mlp(self.outer_norm2(y)), rate, training), labels


class Stage(nn.Module):
    """Blocks that share a bias for each pair of a patch and a key."""

    def __init__(self, spec: Spec, stage: int, size: tuple[int, int], drop_paths: Sequence[float]):
        super().__init__()
        self.size, self.reduction = size, REDUCTIONS[stage]
        keys, heads = key_grid(size, self.reduction), WIDENING[stage] * spec.heads
        # Drawn with standard deviation 1, as published.
        self.relative_pos = nn.Parameter(torch.randn(1, heads, size[0] * size[1], keys[0] * keys[1]))
        reading = 2 if len(drop_paths) > DEEP else 1
        self.blocks = nn.ModuleList(Block(spec, stage, j < reading, rate) for j, rate in enumerate(drop_paths))
        self.eval_cache = EvalCache()

    def grids(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the grids of patches and of keys of a map."""
        return size, key_grid(size, self.reduction)

    def bias(self, size: tuple[int, int]) -> Tensor:
        """Return the bias of each pair for a grid, (1, h, N, M); kept in evaluation."""
        return self.eval_cache.get(self._bias, size, of=[self.relative_pos])

    def _bias(self, size: tuple[int, int]) -> Tensor:
        return resize_pair_table(self.relative_pos, self.grids(self.size), self.grids(size))


class Stem(nn.Module):
    """Convolutions to patches at stride 8, and to words at stride 2, 4 × 4 of them in each patch."""

    def __init__(self, in_channels: int, channels: int, inner_channels: int):
        super().__init__()
        c = inner_channels
        self.common_conv = nn.Sequential(*_conv(in_channels, 2 * c, 2))
        self.inner_convs = nn.Sequential(*_conv(2 * c, c, 1))
        self.outer_convs = nn.Sequential(*_conv(2 * c, 4 * c, 2), *_conv(4 * c, 8 * c, 2), *_conv(8 * c, channels, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return words (B·N, 16, c), patches (B, N, D) and their grid."""
        x = self.common_conv(pad_to_multiple(images, STRIDE))
        patches = self.outer_convs(x)
        size = (patches.size(2), patches.size(3))
        words = self.inner_convs(x).unflatten(3, (size[1], 4)).unflatten(2, (size[0], 4))
        words = words.permute(0, 2, 4, 3, 5, 1).reshape(images.size(0) * size[0] * size[1], WORDS, -1)
        return words, patches.flatten(2).transpose(1, 2), size


class WordAggregation(nn.Module):
    """The 8 × 8 words of four neighboring patches to 4 × 4 words of one, by a strided convolution."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Sequential(nn.Conv2d(channels, out_channels, 3, stride=2, padding=1))

    def forward(self, words: Tensor, size: tuple[int, int]) -> Tensor:
        """Return words (B·N', 16, c') of the next stage."""
        x = self.norm(words).view(-1, *size, 4, 4, words.size(-1))
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, size[1] % 2, 0, size[0] % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        x = x.permute(0, 1, 3, 2, 5, 4, 6, 7).reshape(-1, 8, 8, words.size(-1))
        return self.conv(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


class SentenceAggregation(nn.Module):
    """Patches to a grid of half the sides, rounded up, by a strided convolution."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Sequential(nn.Conv2d(channels, out_channels, 3, stride=2, padding=1))

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Return patches (B, N', D') of the next stage and their grid."""
        x = self.conv(self.norm(x).transpose(1, 2).unflatten(2, size))
        return x.flatten(2).transpose(1, 2), (x.size(2), x.size(3))


@MODELS.register_module()
class PyramidTNT(Backbone):
    """PyramidTNT with outputs at strides 8, 16, 32 and 64.

    Args:
        img_size: side that the position tables are made for.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "pyramid_tnt"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("stages", -1, "blocks", -1)
    # Table 1 of the paper and the entry points of the code.
    archs = {
        "pyramid_tnt_tiny": Spec(80, 2, 5, 1, (2, 6, 3, 2), img_size=192),
        "pyramid_tnt_small": Spec(128, 4, 8, 2, (2, 8, 4, 2)),
        "pyramid_tnt_medium": Spec(192, 4, 12, 2, (2, 8, 6, 2)),
        "pyramid_tnt_base": Spec(256, 4, 16, 2, (2, 10, 6, 2)),
    }
    reported = {
        "pyramid_tnt_tiny": Reported(10.6, 0.6, 75.2, sources=(README,)),
        "pyramid_tnt_small": Reported(32.0, 3.3, 82.0, sources=(README,)),
        "pyramid_tnt_medium": Reported(85.0, 8.2, 83.5, sources=(README,)),
        "pyramid_tnt_base": Reported(157.0, 16.0, 84.1, sources=(README,)),
    }
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid([wide * spec.channels for wide in WIDENING], STRIDE)

    def build(self, spec: Spec, *, img_size: tuple[int, int]) -> None:
        channels = [wide * spec.channels for wide in WIDENING]
        inner = [wide * spec.inner_channels for wide in WIDENING]
        grids = [grid_of(img_size, STRIDE * 2**i) for i in range(len(spec.depths))]
        self.grid = grids[0]
        self.patch_embed = Stem(self.in_channels, channels[0], inner[0])
        self.outer_pos = nn.Parameter(trunc_normal_(torch.empty(1, grids[0][0] * grids[0][1], channels[0]), std=0.02))
        self.inner_pos = nn.Parameter(trunc_normal_(torch.empty(1, WORDS, inner[0]), std=0.02))
        rates = iter(self.drop_path_rates())
        self.stages = nn.ModuleList(
            Stage(spec, i, grids[i], [next(rates) for _ in range(n)]) for i, n in enumerate(spec.depths)
        )
        self.word_merges = nn.ModuleList(WordAggregation(*pair) for pair in pairwise(inner))
        self.sentence_merges = nn.ModuleList(SentenceAggregation(*pair) for pair in pairwise(channels))
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1])
        self.apply(_init)

    def trunk(self, images, labels, count):
        words, x, size = self.patch_embed(images)
        words = words + self.inner_pos
        x = x + resize_position_table(self.outer_pos, self.grid, size)
        for index, stage in enumerate(self.stages[:count]):
            if index:
                words = self.word_merges[index - 1](words, size)
                x, size = self.sentence_merges[index - 1](x, size)
            rows = None if labels is None else labels_to_tokens(labels, size)
            bias = stage.bias(size)
            for block in stage.blocks:
                words, x, rows = self.checkpointed(block, words, x, size, bias, rows)
            labels = None if rows is None else labels_to_map(rows, size)
            yield x.unflatten(1, size), labels

    def stage_modules(self):
        merges = [[], *zip(self.word_merges, self.sentence_merges, strict=True)]
        stages = [[*merge, stage] for merge, stage in zip(merges, self.stages, strict=True)]
        return [[self.patch_embed, self.outer_pos, self.inner_pos], *stages]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] in ("patch_embed", "outer_pos", "inner_pos"):
            return 0
        # A merging and a stage's bias table count with the stage's first block.
        if parts[0] in ("word_merges", "sentence_merges"):
            return sum(self.depths[: int(parts[1]) + 1]) + 1
        if parts[0] == "stages":
            return sum(self.depths[: int(parts[1])]) + (int(parts[3]) if parts[2] == "blocks" else 0) + 1
        return self.depth + 1

    def no_weight_decay(self):
        return {"outer_pos", "inner_pos"}

    def resize_loaded(self, state):
        own, resized = dict(self.named_parameters()), dict(state)
        if "outer_pos" in state:
            resized["outer_pos"] = resize_square_table(state["outer_pos"], self.outer_pos, self.grid)
        for key, value in state.items():
            if not key.endswith("relative_pos") or key not in own or value.dim() != 4 or value.shape == own[key].shape:
                continue
            if (old := _square(value.size(2))) and (keys := _square(value.size(3))):
                stage = self.stages[int(key.split(".")[1])]
                resized[key] = resize_pair_table(value, (old, keys), stage.grids(stage.size))
        return resized


def _conv(channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _norm_patch(norm: nn.Module, words: Tensor) -> Tensor:
    return norm(words.flatten(1)).view_as(words)


def _square(count: int) -> tuple[int, int] | None:
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
