"""PVT and PVT v2: a four-stage pyramid whose attention reads keys and values from a reduced map.

Papers: Wang et al., "Pyramid Vision Transformer", ICCV 2021, arXiv 2102.12122; Wang et al., "PVT v2: Improved Baselines
with Pyramid Vision Transformer", CVMJ 2022, arXiv 2106.13797. Code: whai362/PVT (Apache-2.0); SMMix trains the same v1.
timm's v2 computes the same numbers. mmdet's v1 and v2 differ by 5e-5 (eps of two norms). Neither carries labels, so the
networks are written here.

Shapes: B batch, N = H·W tokens of a stage, C channels, h heads, M keys, K label channels.

Kept from the published code: LayerNorm eps 1e-5 behind patch embeddings and reductions, 1e-6 elsewhere; v1 floors sides
at each step and reduction, what they do not reach is not seen, v2's overlapping patches reach everything; v1's class
token joins in stage 4, its position tables are resampled bilinearly; v2 normalizes each stage's output, and the norm is
part of the trunk.
Different: a table is resampled whenever the grid differs (v1 compares token counts with stage 1's table, which wraps
the rows of a 112 × 448 image); a side shorter than a patch or a reduction is padded to it with zeros.
v1's dense maps are un-normalized, with the class token at work in stage 4 as in the classifier; the published detectors
leave it out: ``class_token=False``.
Labels of keys are the mean over the cell that a key was reduced from; depthwise convolutions leave labels in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend
from mixtransfer.layers.channels_last import Conv, Patches, strips
from mixtransfer.layers.cpu import in_chunks
from mixtransfer.layers.depthwise import Depthwise
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens, pool_labels
from mixtransfer.layers.linear import Linear, gelu
from mixtransfer.layers.positions import resize_position_table, resize_square_table
from mixtransfer.layers.residual import residual, residual_with_labels
from mixtransfer.registry import MODELS

__all__ = ["PVT", "PVTv2"]

V1 = "arXiv 2102.12122, tables 2 and 4 (COCO: Mask R-CNN, 12 epochs)"
V1_MIOU = "ADE20K, Semantic FPN, 40k iterations: whai362/PVT, segmentation/README.md, column of the code"
V2 = "whai362/PVT, README (COCO: Mask R-CNN, 12 epochs)"
V2_FLOPS = "multiply-accumulates: arXiv 2106.13797 as listed by Papers with Code and quoted by arXiv 2202.09741"
V2_MIOU = "ADE20K, Semantic FPN: arXiv 2106.13797 as quoted by arXiv 2202.09741"
NORM_EPS = 1e-6
STRIDES = (4, 8, 16, 32)
LAST = len(STRIDES) - 1
REDUCTIONS = (8, 4, 2, 1)
POOLED = 7  # side of the key map of linear attention, v2 section 3.1


@dataclass(frozen=True)
class Spec:
    """One published size: blocks, channels, heads and MLP expansion of each stage; ``linear`` is v2's attention."""

    depths: tuple[int, ...]
    channels: tuple[int, ...] = (64, 128, 320, 512)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    expansions: tuple[int, ...] = (8, 8, 4, 4)
    linear: bool = False
    img_size: int = 224


class Attention(nn.Module):
    """Attention of all tokens to keys from cells of ``reduction`` × ``reduction`` tokens."""

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = Linear(channels, channels)
        self.kv = Linear(channels, 2 * channels)
        self.proj = Linear(channels, channels)
        if reduction > 1:
            self.sr = Patches(channels, channels, reduction)
            self.norm = nn.LayerNorm(channels)

    def reduce(self, x: Tensor, size: tuple[int, int], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens behind the keys (B, M, C) and their labels (B, M, K)."""
        if self.reduction == 1:
            return x, labels
        if labels is not None:
            labels = mean_labels(labels_to_map(labels, size), self.reduction).flatten(2).transpose(1, 2)
        return self.norm(self.sr(x.unflatten(1, size)).flatten(1, 2)), labels

    def forward(self, x: Tensor, size: tuple[int, int], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (B, N, C) and the labels each of them attended to (B, N, K)."""
        source, labels = self.reduce(x, size, labels)
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out, attended = attend(q, k, v, labels)
        return self.proj(out.transpose(1, 2).flatten(2)), attended


class LinearAttention(Attention):
    """Attention to a map that is pooled to 7 × 7 keys at any size (v2, section 3.1)."""

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads, reduction=1)
        self.sr = Conv(channels, channels, 1)
        self.norm = nn.LayerNorm(channels)

    def reduce(self, x: Tensor, size: tuple[int, int], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens behind the keys (B, 49, C) and their labels (B, 49, K)."""
        if labels is not None:
            labels = pool_labels(labels_to_map(labels, size), (POOLED, POOLED)).flatten(2).transpose(1, 2)
        grid = F.adaptive_avg_pool2d(x.unflatten(1, size).permute(0, 3, 1, 2), POOLED).permute(0, 2, 3, 1)
        return gelu(self.norm(self.sr(grid).flatten(1, 2))), labels


class DepthwiseConv(nn.Module):
    """A 3 × 3 depthwise convolution over a token grid, (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = Depthwise(channels, 3)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the filtered tokens."""
        return self.dwconv(x.unflatten(1, size)).flatten(1, 2)


class FeedForward(nn.Module):
    """fc2(GELU(fc1 x)); v2 filters what enters the GELU, with linear attention behind a ReLU."""

    def __init__(self, channels: int, hidden: int, depthwise: bool, relu: bool):
        super().__init__()
        self.relu = relu
        self.fc1 = Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden) if depthwise else None
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return new tokens (B, N, C)."""
        if self.dwconv is None:
            return in_chunks(lambda y: self.fc2(gelu(self.fc1(y))), x, self.fc1.out_features)
        return strips(self.filtered, x.unflatten(1, size), self.fc1.out_features).flatten(1, 2)

    def filtered(self, x: Tensor) -> Tensor:
        """Return new tokens (B, H, W, C) of v2."""
        size, x = x.shape[1:3], self.fc1(x.flatten(1, 2))
        return self.fc2(gelu(self.dwconv(F.relu(x) if self.relu else x, size))).unflatten(1, size)


class Block(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), each with stochastic depth."""

    def __init__(self, spec: Spec, stage: int, depthwise: bool, drop_path: float):
        super().__init__()
        channels, heads = spec.channels[stage], spec.heads[stage]
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = LinearAttention(channels, heads) if spec.linear else Attention(channels, heads, REDUCTIONS[stage])
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = FeedForward(channels, spec.expansions[stage] * channels, depthwise, relu=spec.linear)
        self.drop_path = drop_path

    def forward(self, x: Tensor, size: tuple[int, int], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, N, C) and their labels (B, N, K) or None."""
        attention = lambda y, rows: self.attn(self.norm1(y), size, rows)  # noqa: E731
        x, labels = residual_with_labels(x, labels, attention, self.drop_path, self.training)
        return residual(x, lambda y: self.mlp(self.norm2(y), size), self.drop_path, self.training), labels


class StageEmbed(nn.Module):
    """A strided convolution and a norm: (B, H, W, C) -> (B, h, w, D)."""

    def __init__(self, proj: nn.Module, channels: int):
        super().__init__()
        self.proj = proj
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded map."""
        return self.norm(self.proj(x))


def mean_labels(labels: Tensor, cell: int) -> Tensor:
    """Return the mean of each cell of a label map (B, K, H, W), sides floored; a shorter side is one cell."""
    return F.avg_pool2d(labels, [min(cell, side) for side in labels.shape[-2:]])


class Pyramid(Backbone):
    """Base of both versions: four stages of patch embedding and blocks, under the published names."""

    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("block4", -1)
    depthwise: ClassVar[bool]
    #: Whether the class token takes part in stage 4 of the dense maps.
    class_token: bool = False

    def outputs(self, spec):
        return pyramid(spec.channels)

    def add_stages(self, spec: Spec) -> None:
        """Make the patch embedding and the blocks of each stage."""
        rates = iter(self.drop_path_rates())
        for index, depth in enumerate(spec.depths):
            patches = self.patches(index, (self.in_channels, *spec.channels)[index], spec.channels[index])
            self.add_module(f"patch_embed{index + 1}", StageEmbed(patches, spec.channels[index]))
            blocks = (Block(spec, index, self.depthwise, next(rates)) for _ in range(depth))
            self.add_module(f"block{index + 1}", nn.ModuleList(blocks))

    def patches(self, index: int, before: int, channels: int) -> nn.Module:
        """Return the convolution (B, H, W, C) -> (B, h, w, D) at the head of stage ``index``."""
        raise NotImplementedError

    def merge_labels(self, labels: Tensor) -> Tensor:
        """Return the labels (B, K, h, w) behind the patch embedding of stages 2 to 4."""
        raise NotImplementedError

    def prepare(self, index: int, x: Tensor, size: tuple[int, int], class_token: bool) -> Tensor:
        """Return what the blocks of a stage read: its tokens (B, N, C), plus positions, maybe behind a class token."""
        return x

    def conclude(self, index: int, x: Tensor) -> Tensor:
        """Return the tokens that a stage hands on, from those behind its blocks."""
        return x

    def extras(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Return what stage ``index`` has besides its patch embedding and blocks."""
        raise NotImplementedError

    def stages(
        self, images: Tensor, labels: Tensor | None, count: int, class_token: bool
    ) -> Iterator[tuple[Tensor, Tensor | None, tuple[int, int]]]:
        """Yield (tokens (B, N, C), labels (B, N, K) or None, grid) after each of the first ``count`` stages.

        With ``class_token`` stage 4 has one token more, the first.
        """
        x, grid = images.permute(0, 2, 3, 1), labels
        for index in range(count):
            x = getattr(self, f"patch_embed{index + 1}")(x)
            size = (x.size(1), x.size(2))
            rows = None
            if grid is not None:
                rows = labels_to_tokens(self.merge_labels(grid) if index else grid, size)
            x = self.prepare(index, x.flatten(1, 2), size, class_token)
            if rows is not None and x.size(1) > rows.size(1):
                rows = torch.cat([image_label(labels).unsqueeze(1), rows], dim=1)
            for block in getattr(self, f"block{index + 1}"):
                x, rows = self.checkpointed(block, x, size, rows)
            x = self.conclude(index, x)
            yield x, rows, size
            if index < count - 1:
                x, grid = x.unflatten(1, size), None if rows is None else labels_to_map(rows, size)

    def trunk(self, images, labels, count):
        for x, rows, size in self.stages(images, labels, count, self.class_token):
            patches = slice(-size[0] * size[1], None)
            yield x[:, patches].unflatten(1, size), None if rows is None else labels_to_map(rows[:, patches], size)

    def stage_modules(self):
        embeds = [[getattr(self, f"patch_embed{i + 1}")] for i in range(len(STRIDES))]
        stages = [[getattr(self, f"block{i + 1}"), *self.extras(i)] for i in range(len(STRIDES))]
        return [embeds[0], stages[0], *(e + s for e, s in zip(embeds[1:], stages[1:], strict=True))]

    def layer_of(self, name):
        first, *rest = name.split(".")
        if first in ("norm", "norm4", "token_classifier") or first.startswith("output_norm"):
            return self.depth + 1
        stage = len(STRIDES) if first == "cls_token" else int(first[-1])
        before = sum(self.depths[: stage - 1])
        if first.startswith("block"):
            return before + int(rest[0]) + 1
        # A stage's embeddings and norm count with the last block before them.
        return before + self.depths[stage - 1] if first.startswith("norm") else before


@MODELS.register_module()
class PVT(Pyramid):
    """Pyramid Vision Transformer (v1) with outputs at strides 4, 8, 16 and 32 (floored).

    Args:
        img_size: side that the position tables are made for.
        class_token: whether the class token takes part in stage 4 of the dense maps; in the published detectors it
            does not.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "pvt"
    depthwise = False
    # Table 1 of the paper; pvt_huge_v2 is in the repository only, and a v1 in spite of its name.
    archs = {
        "pvt_tiny": Spec((2, 2, 2, 2)),
        "pvt_small": Spec((3, 4, 6, 3)),
        "pvt_medium": Spec((3, 4, 18, 3)),
        "pvt_large": Spec((3, 8, 27, 3)),
        "pvt_huge_v2": Spec((3, 10, 60, 3), (128, 256, 512, 768), (2, 4, 8, 12)),
    }
    reported = {
        "pvt_tiny": Reported(13.2, 1.9, 75.1, 36.7, 35.1, 36.6, (V1, V1_MIOU)),
        "pvt_small": Reported(24.5, 3.8, 79.8, 40.4, 37.8, 41.9, (V1, V1_MIOU)),
        "pvt_medium": Reported(44.2, 6.7, 81.2, 42.0, 39.0, 43.5, (V1, V1_MIOU)),
        "pvt_large": Reported(61.4, 9.8, 81.7, 42.9, 39.5, 43.5, (V1, V1_MIOU)),
    }
    embed_only = (r"norm\..+", "cls_token")
    # SMMix's second head, with which only its training classifies single tokens.
    official = KeyMap(derived=(r"token_head\..+",))

    def build(self, spec: Spec, *, img_size: tuple[int, int], class_token: bool = True) -> None:
        self.add_stages(spec)
        self.grids = [(max(img_size[0] // s, 1), max(img_size[1] // s, 1)) for s in STRIDES]
        self.class_token = class_token
        for index, (h, w) in enumerate(self.grids):
            table = torch.empty(1, h * w + (index == LAST), spec.channels[index])
            self.register_parameter(f"pos_embed{index + 1}", nn.Parameter(trunc_normal_(table, std=0.02)))
        if class_token or self.with_embedding:
            self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, spec.channels[LAST]), std=0.02))
        if self.with_embedding:
            self.norm = nn.LayerNorm(spec.channels[LAST], eps=NORM_EPS)
        self.apply(init_linear)

    def patches(self, index, before, channels):
        return Patches(before, channels, 4 if index == 0 else 2)

    def merge_labels(self, labels):
        return mean_labels(labels, 2)

    def prepare(self, index, x, size, class_token):
        table = resize_position_table(getattr(self, f"pos_embed{index + 1}"), self.grids[index], size, "bilinear")
        if index < LAST:
            return x + table
        if not class_token:
            return x + table[:, 1:]
        return torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1) + table

    def extras(self, index):
        cls_token = [self.cls_token] if index == LAST and hasattr(self, "cls_token") else []
        return [getattr(self, f"pos_embed{index + 1}"), *cls_token]

    def embedding(self, images, labels):
        *_, (x, rows, size) = self.stages(images, labels, len(STRIDES), class_token=True)
        self.observe(x[:, 1:].unflatten(1, size), self.norm)
        return self.norm(x[:, 0]), None if rows is None else rows[:, 0]

    def no_weight_decay(self):
        return {"cls_token"} if hasattr(self, "cls_token") else set()

    def resize_loaded(self, state):
        grids = {f"pos_embed{index + 1}": grid for index, grid in enumerate(self.grids)}
        tables = {
            key: resize_square_table(state[key], getattr(self, key), grid, "bilinear")
            for key, grid in grids.items()
            if key in state
        }
        return {**state, **tables}


@MODELS.register_module()
class PVTv2(Pyramid):
    """Pyramid Vision Transformer v2 with outputs at strides 4, 8, 16 and 32, each behind its stage's norm.

    Args:
        options: those of :class:`~mixtransfer.backbones.base.Backbone`; ``with_embedding`` adds no layers, as the
            embedding reads those of the dense maps.
    """

    family = "pvt_v2"
    depthwise = True
    # Table 1 of the paper; b2_li has linear attention.
    archs = {
        "pvt_v2_b0": Spec((2, 2, 2, 2), (32, 64, 160, 256)),
        "pvt_v2_b1": Spec((2, 2, 2, 2)),
        "pvt_v2_b2": Spec((3, 4, 6, 3)),
        "pvt_v2_b2_li": Spec((3, 4, 6, 3), linear=True),
        "pvt_v2_b3": Spec((3, 4, 18, 3)),
        "pvt_v2_b4": Spec((3, 8, 27, 3)),
        "pvt_v2_b5": Spec((3, 6, 40, 3), expansions=(4, 4, 4, 4)),
    }
    reported = {
        "pvt_v2_b0": Reported(3.7, 0.6, 70.5, 38.2, 36.2, None, (V2, V2_FLOPS)),
        "pvt_v2_b1": Reported(14.0, 2.1, 78.7, 41.8, 38.8, 42.5, (V2, V2_FLOPS, V2_MIOU)),
        "pvt_v2_b2": Reported(25.4, 4.0, 82.0, 45.3, 41.2, 45.2, (V2, V2_FLOPS, V2_MIOU)),
        "pvt_v2_b2_li": Reported(22.6, None, 82.1, 44.1, 40.5, None, (V2,)),
        "pvt_v2_b3": Reported(45.2, 6.9, 83.1, 47.0, 42.5, 47.3, (V2, V2_FLOPS, V2_MIOU)),
        "pvt_v2_b4": Reported(62.6, 10.1, 83.6, 47.5, 42.7, None, (V2, V2_FLOPS)),
        "pvt_v2_b5": Reported(82.0, 11.8, 83.8, 47.4, 42.5, None, (V2, V2_FLOPS)),
    }

    def build(self, spec: Spec) -> None:
        self.add_stages(spec)
        for index, channels in enumerate(spec.channels):
            self.add_module(f"norm{index + 1}", nn.LayerNorm(channels, eps=NORM_EPS))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)
        self.apply(init_linear)

    def patches(self, index, before, channels):
        kernel, stride = (7, 4) if index == 0 else (3, 2)
        return Conv(before, channels, kernel, stride, padding=kernel // 2)

    def merge_labels(self, labels):
        # count_include_pad keeps padding out of the mean of the tokens that a patch at the border sees.
        return F.avg_pool2d(labels, 3, 2, padding=1, count_include_pad=False)

    def conclude(self, index, x):
        return getattr(self, f"norm{index + 1}")(x)

    def extras(self, index):
        return [getattr(self, f"norm{index + 1}")]

    def embedded(self, x):
        return x
