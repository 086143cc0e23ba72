"""CMT: a convolutional stem, and blocks of depthwise convolution, attention to a reduced map, and a convolutional MLP.

Paper: Guo et al., "CMT: Convolutional Neural Networks Meet Vision Transformers", CVPR 2022, arXiv 2107.06263. Code:
ggjy/CMT.pytorch (MIT), also in huawei-noah/Efficient-AI-Backbones (Apache-2.0). No library of ours ships it.

Shapes: B batch, (H, W) the map of a stage, C its channels, N = H·W queries, M = ⌈H/r⌉·⌈W/r⌉ keys, h heads, K label
channels. Maps are (B, H, W, C) inside.

Kept from the published code: GELU before BatchNorm; LayerNorm eps 1e-5 in the patch embeddings and 1e-6 in the blocks;
a free bias for each pair of a query and a key, shared by the blocks of a stage; no norm on outputs; the embedding is
the mean of 1280 channels behind a 1 × 1 convolution, BatchNorm and SiLU.
Different: the published network takes one square size. Here sides are padded with zeros where a stride does not divide
them, and the bias is resampled to other grids, bicubic over the queries and over the keys apart (section 3.4 resamples
it; as one image of N × M it would mix rows of the grid). No dense code is published: the maps are those behind the last
block of each stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend_windows, mix_labels
from mixtransfer.layers.channels_last import Pointwise, strips
from mixtransfer.layers.eval_cache import EvalCache
from mixtransfer.layers.init import init_linear
from mixtransfer.layers.labels import labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, gelu, linear
from mixtransfer.layers.patches import grid_of, pad_to_multiple
from mixtransfer.layers.residual import add_, keep_mask
from mixtransfer.registry import MODELS

__all__ = ["CMT"]

README = "ggjy/CMT.pytorch, README; parameters and multiply-accumulates: arXiv 2107.06263, table 1"
RETINANET = "COCO: RetinaNet, arXiv 2107.06263, abstract"
MORE = (
    "table 1 and the published code differ; Mask R-CNN with ours has 44.5 M, as the paper prints by our memory of it, "
    "and would have 43.3 M with a network of 25.1 M"
)
NORM_EPS = 1e-6
STRIDES = (4, 8, 16, 32)
REDUCTIONS = (8, 4, 2, 1)  # of keys and values, r in the paper
HEADS = (1, 2, 4, 8)
EMBED_CHANNELS = 1280
STAGES = "abcd"


@dataclass(frozen=True)
class Spec:
    """One published size: channels and blocks of each stage, MLP expansion, stem channels, image side."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    expansion: float
    stem: int
    img_size: int


def resize_pair_bias(
    bias: Tensor, old: tuple[tuple[int, int], tuple[int, int]], new: tuple[tuple[int, int], tuple[int, int]]
) -> Tensor:
    """Resample a bias (h, N, M) from (query grid, key grid) ``old`` to ``new``, over each of the two grids apart."""
    if old == new:
        return bias
    heads = len(bias)
    (queries, keys), (to_queries, to_keys) = old, new
    if keys != to_keys:
        bias = F.interpolate(bias.unflatten(2, keys), size=to_keys, mode="bicubic", align_corners=False).flatten(2)
    if queries != to_queries:
        planes = bias.transpose(1, 2).reshape(heads, -1, *queries)
        planes = F.interpolate(planes, size=to_queries, mode="bicubic", align_corners=False)
        bias = planes.flatten(2).transpose(1, 2)
    return bias.contiguous()


def plus_depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return x + conv(x) on a map (B, C, H, W) by one depthwise 3 × 3 convolution: the center takes x along."""
    center = F.pad(conv.weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
    return F.conv2d(x, conv.weight + center, conv.bias, padding=1, groups=conv.groups)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand of each channel of a norm that does not learn its statistics."""
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


def mean_labels(labels: Tensor, cell: int) -> Tensor:
    """Return the mean of each cell of a label map (B, K, H, W); padding at an odd border has none."""
    return F.avg_pool2d(labels, cell, ceil_mode=True, count_include_pad=False)


class Attention(nn.Module):
    """Attention of all tokens to a map that a depthwise convolution reduces, with a bias for each pair."""

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = Linear(channels, channels)
        self.k = Linear(channels, channels)
        self.v = Linear(channels, channels)
        self.proj = Linear(channels, channels)
        if reduction > 1:
            conv = nn.Conv2d(channels, channels, reduction, reduction, groups=channels)
            self.sr = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor, bias: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (B, H, W, C) and the labels each of them attended to (B, N, K)."""
        source, size = x, (x.size(1), x.size(2))
        if self.reduction > 1:
            source = self.sr(pad_to_multiple(x.permute(0, 3, 1, 2), self.reduction)).permute(0, 2, 3, 1)
            if labels is not None:
                labels = mean_labels(labels_to_map(labels, size), self.reduction).flatten(2).transpose(1, 2)
        q, k, v = (
            layer(tokens.flatten(1, 2)).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.q, x), (self.k, source), (self.v, source))
        )
        out, attended = attend_windows(q, k, v, bias, labels)
        return self.proj(out.transpose(1, 2).flatten(2)).unflatten(1, size), attended


class ConvMlp(nn.Module):
    """1 × 1, GELU, BN; y + depthwise 3 × 3 y, GELU, BN; 1 × 1, BN: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.proj = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.proj_bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return new tokens."""
        return self.rows(x) if self.training else strips(self.rows, x, self.proj.in_channels)

    def rows(self, x: Tensor) -> Tensor:
        """Return new tokens of a part of the map."""
        x = gelu(plus_depthwise(self.proj, self.conv1(x.permute(0, 3, 1, 2))))
        conv, norm = self.conv2
        if norm.training or self.proj_bn.training:
            return norm(conv(self.proj_bn(x))).permute(0, 2, 3, 1)
        # Fixed statistics are an affine map on either side of the convolution, and join it.
        (factor, summand), (scale, shift) = affine(self.proj_bn), affine(norm)
        weight = scale[:, None] * conv.weight.flatten(1)
        bias = scale * conv.bias + shift + weight @ summand
        return linear(x.permute(0, 2, 3, 1), weight * factor, bias)


class Block(nn.Module):
    """x + depthwise 3 × 3 x, then x + attention(LN x), then x + MLP(LN x), the last two with stochastic depth."""

    def __init__(self, channels: int, heads: int, reduction: int, hidden: int, drop_path: float):
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = ConvMlp(channels, hidden)
        self.drop_path = drop_path

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return x + branch with stochastic depth, for a branch that was computed for the whole batch."""
        # Every sample's branch is computed, dropped or not: BatchNorm's statistics are those of the whole batch.
        if self.training and self.drop_path:
            branch = branch * keep_mask(len(x), self.drop_path, x)
        return add_(x, branch)

    def forward(self, x: Tensor, bias: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, H, W, C) and their labels (B, N, K) or None."""
        x = plus_depthwise(self.proj, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        branch, attended = self.attn(self.norm1(x), bias, labels)
        x = self.add(x, branch)
        x = self.add(x, self.mlp(self.norm2(x)))
        return x, None if labels is None else mix_labels(labels, attended)


class StageEmbed(nn.Module):
    """2 × 2 cells to one token, and a norm: (B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, D)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 2, 2)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded map."""
        return self.norm(self.proj(pad_to_multiple(x.permute(0, 3, 1, 2), 2)).permute(0, 2, 3, 1))


@MODELS.register_module()
class CMT(Backbone):
    """CMT with outputs at strides 4, 8, 16 and 32, without norms.

    Args:
        img_size: side that the bias tables are made for.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "cmt"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("blocks_d", -1)
    # Table 1 of the paper; image sides are those of the repository's training commands.
    archs = {
        "cmt_ti": Spec((46, 92, 184, 368), (2, 2, 10, 2), 3.6, stem=16, img_size=160),
        "cmt_xs": Spec((52, 104, 208, 416), (3, 3, 12, 3), 3.77, stem=16, img_size=192),
        "cmt_s": Spec((64, 128, 256, 512), (3, 3, 16, 3), 4, stem=32, img_size=224),
        "cmt_b": Spec((76, 152, 304, 608), (4, 4, 20, 4), 4, stem=38, img_size=256),
    }
    reported = {
        "cmt_ti": Reported(9.49, 0.6, 79.0, sources=(README,)),
        "cmt_xs": Reported(15.24, 1.5, 81.8, sources=(README,)),
        "cmt_s": Reported(25.14, 4.0, 83.5, 44.3, sources=(README, RETINANET), reason=MORE),
        "cmt_b": Reported(45.72, 9.3, 84.5, sources=(README,)),
    }
    embed_only = (r"_fc\..+", r"_bn\..+")

    def outputs(self, spec):
        return pyramid(spec.channels)

    def build(self, spec: Spec, *, img_size: tuple[int, int]) -> None:
        self.embed_channels = EMBED_CHANNELS
        #: Of each stage, the grids of queries and keys that its bias table is made for.
        self.grids = [
            (grid := grid_of(img_size, s), grid_of(grid, r)) for s, r in zip(STRIDES, REDUCTIONS, strict=True)
        ]
        self.eval_cache = nn.ModuleList(EvalCache() for _ in STAGES)

        for number in (1, 2, 3):
            before, stride = (self.in_channels, 2) if number == 1 else (spec.stem, 1)
            self.add_module(f"stem_conv{number}", nn.Conv2d(before, spec.stem, 3, stride, padding=1))
            self.add_module(f"stem_norm{number}", nn.BatchNorm2d(spec.stem))
        rates = iter(self.drop_path_rates())
        for i, (name, channels) in enumerate(zip(STAGES, spec.channels, strict=True)):
            queries, keys = (h * w for h, w in self.grids[i])
            self.register_parameter(f"relative_pos_{name}", nn.Parameter(torch.randn(HEADS[i], queries, keys)))
            self.add_module(f"patch_embed_{name}", StageEmbed((spec.stem, *spec.channels)[i], channels))
            blocks = (
                Block(channels, HEADS[i], REDUCTIONS[i], int(channels * spec.expansion), next(rates))
                for _ in range(spec.depths[i])
            )
            self.add_module(f"blocks_{name}", nn.ModuleList(blocks))
        if self.with_embedding:
            self._fc = Pointwise(spec.channels[-1], EMBED_CHANNELS)
            self._bn = nn.BatchNorm2d(EMBED_CHANNELS)
        self.apply(_init)

    def bias(self, stage: int, size: tuple[int, int]) -> Tensor:
        """Return the bias of a stage for a map, (1, h, N, M); kept in evaluation."""
        table = getattr(self, f"relative_pos_{STAGES[stage]}")

        def make(size: tuple[int, int]) -> Tensor:
            return resize_pair_bias(table, self.grids[stage], (size, grid_of(size, REDUCTIONS[stage]))).unsqueeze(0)

        return self.eval_cache[stage].get(make, size, of=[table])

    def trunk(self, images, labels, count):
        x = images
        for number in (1, 2, 3):
            x = getattr(self, f"stem_norm{number}")(gelu(getattr(self, f"stem_conv{number}")(x)))
        x = x.permute(0, 2, 3, 1)
        for stage, name in enumerate(STAGES[:count]):
            if stage and labels is not None:
                labels = mean_labels(labels, 2)
            x = getattr(self, f"patch_embed_{name}")(x)
            size = (x.size(1), x.size(2))
            rows = None if labels is None else labels_to_tokens(labels, size)
            bias = self.bias(stage, size)
            for block in getattr(self, f"blocks_{name}"):
                x, rows = self.checkpointed(block, x, bias, rows)
            labels = None if rows is None else labels_to_map(rows, size)
            yield x, labels

    def embedded(self, x):
        return F.silu(self._bn(self._fc(x).permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def stage_modules(self):
        stem = [getattr(self, f"stem_{kind}{number}") for kind in ("conv", "norm") for number in (1, 2, 3)]
        embeds = [[getattr(self, f"patch_embed_{name}")] for name in STAGES]
        stages = [[getattr(self, f"blocks_{name}"), getattr(self, f"relative_pos_{name}")] for name in STAGES]
        return [stem + embeds[0], stages[0], *(e + s for e, s in zip(embeds[1:], stages[1:], strict=True))]

    def layer_of(self, name):
        first, *rest = name.split(".")
        if first.startswith("stem_"):
            return 0
        part, _, stage = first.rpartition("_")
        if part not in ("patch_embed", "blocks", "relative_pos"):
            return self.depth + 1
        before = sum(self.depths[: STAGES.index(stage)])
        if part == "blocks":
            return before + int(rest[0]) + 1
        # A patch embedding counts with the last block before it, a bias with the first block that reads it.
        return before + (part == "relative_pos")

    def resize_loaded(self, state):
        resized = dict(state)
        for stage, name in enumerate(STAGES):
            key = f"relative_pos_{name}"
            table, own = state.get(key), getattr(self, key)
            if table is None or table.dim() != 3 or table.shape == own.shape:
                continue
            # A published table belongs to a square image: N queries and N / r² keys.
            side = round(table.size(1) ** 0.5)
            grids = ((side, side), grid_of((side, side), REDUCTIONS[stage]))
            if table.shape[1:] == (side * side, grids[1][0] * grids[1][1]):
                resized[key] = resize_pair_bias(table, grids, self.grids[stage])
        return resized


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        # Not divided by the groups, so that depthwise kernels start small, as published.
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
