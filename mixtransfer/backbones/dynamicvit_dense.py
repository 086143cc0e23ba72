"""Dynamic spatial sparsification of Swin and ConvNeXt: whole maps, whose less important positions take a fast path.

Paper: Rao et al., "Dynamic Spatial Sparsification for Efficient Vision Transformers and Convolutional Neural
Networks", T-PAMI 2023, arXiv 2207.01580; ConvNeXt: Liu et al., CVPR 2022, arXiv 2201.03545. Code:
raoyongming/DynamicViT (MIT). In the third stage predictors choose the positions that go through a block's MLP, the slow
path; the others go through a LayerNorm and one linear layer, the fast path. Attention and convolutions see all.

Shapes: B batch, N = H·W positions of the map, C channels, K label channels; maps are (B, H, W, C) inside ConvNeXt.

Kept from the published code: every predictor scores all positions anew, by their own features and the plain mean;
int(N · ratio) of them are slow in evaluation, with ratios r, r − 0.2 and r − 0.4 as floats give them; in training
both paths run on two streams of the whole map, blended by relaxed decisions (straight-through Gumbel), Swin adding
both branches to the same tokens, ConvNeXt each to its own stream; Swin does not shift windows where one covers the map.
Different: positions are sorted by path once a predictor, so that each path is one product and one gather puts them
back (the published evaluation scatters twice, and Swin's fails on batches of two); scores are log-odds with one
logistic draw. Maps of any size: Swin pads as in ``swin``, ConvNeXt floors as published and pads a side shorter than a
stride. A frozen third stage chooses as in evaluation.
The published code is a classifier; the maps are the stages' outputs, un-normalized. Shares are of the whole map: where
a batch is padded to one size, its padding competes for the slow path. Token labels follow the attention in Swin, both
paths acting on single tokens; in ConvNeXt they are pooled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixtransfer.backbones import swin
from mixtransfer.backbones.base import check_out_indices
from mixtransfer.backbones.dynamicvit import (
    README,
    Encoded,
    Noise,
    Predictor,
    SparseBackbone,
    decide,
    logistic_noise,
    next_rate,
)
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import mix_labels
from mixtransfer.layers.channels_last import Patches, Pointwise
from mixtransfer.layers.depthwise import Depthwise
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, gelu, in_chunks
from mixtransfer.layers.patches import PatchEmbed
from mixtransfer.layers.residual import drop_path_rates, keep_mask, residual
from mixtransfer.registry import MODELS

__all__ = ["DynamicConvNeXt", "DynamicSwin"]

SPARSE_STAGE = 2
NORM_EPS = 1e-6  # of ConvNeXt; Swin's norms have 1e-5
STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class SwinSpec:
    """One published Swin: its size, the third stage's blocks before which positions are chosen, and the share kept."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    locations: tuple[int, ...]
    rate: float
    window: int = 7


@dataclass(frozen=True)
class ConvNeXtSpec:
    """One published ConvNeXt, likewise."""

    channels: int
    depths: tuple[int, ...]
    locations: tuple[int, ...]
    rate: float


class Split(NamedTuple):
    """A choice of evaluation.

    Attributes:
        order: (B·N) int64, the positions of all images, those of the slow path first.
        back: (B·N) int64, where each position went.
        slow: how many take the slow path.
    """

    order: Tensor
    back: Tensor
    slow: int

    def run(self, x: Tensor, slow: Callable[[Tensor], Tensor], fast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return tokens (B, N, C), each through its path."""
        rows = x.flatten(0, 1).index_select(0, self.order)
        out = torch.cat([slow(rows[: self.slow]), fast(rows[self.slow :])])
        return out.index_select(0, self.back).view_as(x)


def choose(
    predictor: Predictor, x, choice: Split | Tensor | None, ratio: float, relaxed: bool, noise: Noise
) -> tuple[Tensor | tuple[Tensor, Tensor], Split | Tensor]:
    """Choose the slow positions anew.

    Args:
        predictor: what scores them.
        x: the map (B, …, C), or its streams (slow, fast) after an earlier relaxed choice.
        choice: the choice before, or None.
        ratio: share that is slow.
        relaxed: decide as in training.
        noise: what decisions are drawn with.

    Returns:
        The map or its streams, and the choice: a split, or a mask (B, …, 1) of 0 and 1.
    """
    streams = isinstance(x, tuple)
    whole = blend(choice, *x) if streams else x
    score = predictor(whole)
    if relaxed:
        mask = decide(score, noise).view(*whole.shape[:-1], 1)
        return (x if streams else (x, x)), mask
    batch, positions = score.shape
    count = int(positions * ratio)
    order = score.argsort(dim=1, descending=True)
    order = order + positions * torch.arange(batch, device=order.device).unsqueeze(1)
    order = torch.cat([order[:, :count].flatten(), order[:, count:].flatten()])
    return x, Split(order, order.argsort(), batch * count)


def blend(mask: Tensor, kept: Tensor, others: Tensor) -> Tensor:
    """Return ``kept`` where the mask (B, …, 1) is one and ``others`` where it is zero."""
    return others + mask * (kept - others)


def drop(branch: Tensor, block: nn.Module) -> Tensor:
    """Apply a block's stochastic depth to a branch that was computed for all samples."""
    if not block.training or block.drop_path == 0:
        return branch
    return branch * keep_mask(len(branch), block.drop_path, branch)


class SwinAdaBlock(swin.Block):
    """A Swin block whose MLP has a fast path beside it."""

    def __init__(self, channels: int, heads: int, window: int, drop_path: float):
        super().__init__(channels, heads, window, drop_path)
        path = nn.Sequential(nn.LayerNorm(channels), Linear(channels, channels))
        self.fastmlp = nn.Sequential(OrderedDict(fc1=path))

    def forward(self, x, grid: swin.WindowGrid, labels: Tensor | None, choice: Split | Tensor):
        """Return tokens (B, L, C), or their streams with a mask, and their labels (B, L, K) or None."""
        if isinstance(choice, Split):
            x, labels = self.attend(x, grid, labels)
            return x + choice.run(x, lambda y: self.mlp(self.norm2(y)), self.fastmlp), labels
        slow, fast = x
        x, labels = self.attend(blend(choice, slow, fast), grid, labels)
        slow = self.mlp(self.norm2(blend(choice, x, slow)))
        fast = self.fastmlp(blend(choice, fast, x))
        return (x + drop(slow, self), x + drop(fast, self)), labels

    def attend(self, x: Tensor, grid: swin.WindowGrid, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens with the attention added, and what became of their labels."""
        if labels is None:
            x = residual(x, lambda y: self.attn(self.norm1(y), grid, None)[0], self.drop_path, self.training)
            return x, None
        branch, attended = self.attn(self.norm1(x), grid, labels)
        return x + drop(branch, self), mix_labels(labels, attended)


class SwinStage(swin.Stage):
    """A Swin stage; from the first of ``locations`` on, its blocks have two paths."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        drop_paths: Sequence[float],
        merge: bool,
        locations: tuple[int, ...] = (),
    ):
        plain = locations[0] if locations else len(drop_paths)
        super().__init__(channels, heads, window, drop_paths[:plain], merge)
        self.locations = locations
        self.blocks.extend(SwinAdaBlock(channels, heads, window, rate) for rate in drop_paths[plain:])
        if locations:
            self.score_predictor = nn.ModuleList(Predictor(channels) for _ in locations)


@MODELS.register_module()
class DynamicSwin(SparseBackbone):
    """DySwin with un-normalized outputs at strides 4, 8, 16 and 32.

    Args:
        arch: one of ``archs``.
        in_channels: channels of the images.
        img_size: as in all families; no table of this one depends on it.
        keep_rate: share of positions on the first slow path, where it differs from the published one; 1 has no fast
            paths and no predictors, which is Swin.
        out_indices: stages (0 to 3) whose maps are returned.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        frozen_stages: −1 freezes nothing, 0 the patch embedding, n also the first n stages.
        with_cp: recompute activations in the backward pass.
        with_embedding: keep the last norm, which only ``embed`` reads.
        token_classifier: arguments of :class:`~mixtransfer.backbones.base.TokenClassifier`, or None.
        init_cfg: OpenMMLab initialization, e.g. ``dict(type="mixtransfer.Pretrained", checkpoint=...)``.
    """

    family = "dynamicvit_swin"
    label_rule = "attention"
    drops_tokens = False
    # The repository's model table.
    archs = {
        "dynamicvit_swin_t_07": SwinSpec(96, (2, 2, 6, 2), (3, 6, 12, 24), (1, 2, 3), 0.7),
        "dynamicvit_swin_s_07": SwinSpec(96, (2, 2, 18, 2), (3, 6, 12, 24), (2, 4, 6), 0.7),
        "dynamicvit_swin_b_07": SwinSpec(128, (2, 2, 18, 2), (4, 8, 16, 32), (2, 4, 6), 0.7),
    }
    reported = {
        "dynamicvit_swin_t_07": Reported(None, 4.0, 80.91, sources=(README,)),
        "dynamicvit_swin_s_07": Reported(None, 6.9, 83.21, sources=(README,)),
        "dynamicvit_swin_b_07": Reported(None, 12.1, 83.43, sources=(README,)),
    }
    embed_only = (r"norm\..+",)

    def __init__(
        self,
        arch: str = "dynamicvit_swin_t_07",
        *,
        in_channels: int = 3,
        img_size: int | tuple[int, int] | None = None,
        keep_rate: float | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        with_embedding: bool = False,
        token_classifier: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(arch, with_cp=with_cp, with_embedding=with_embedding, init_cfg=init_cfg)
        spec = self.archs[arch]
        self.depths, self.depth = spec.depths, sum(spec.depths)
        self.out_indices = check_out_indices(out_indices, len(spec.depths), arch)
        self.keep_ratios = falling_ratios(next_rate(keep_rate, spec.rate, 0.4, arch), len(spec.locations))
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        self.embed_channels = channels[-1]

        self.patch_embed = PatchEmbed(in_channels, channels[0], swin.PATCH, nn.LayerNorm(channels[0]))
        rates = iter(drop_path_rates(drop_path_rate, self.depth))
        self.layers = nn.ModuleList(
            SwinStage(
                channels[i],
                spec.heads[i],
                spec.window,
                [next(rates) for _ in range(n)],
                merge=i < len(spec.depths) - 1,
                locations=spec.locations if i == SPARSE_STAGE and self.keep_ratios else (),
            )
            for i, n in enumerate(spec.depths)
        )
        if with_embedding:
            self.norm = nn.LayerNorm(channels[-1])
        self.apply(init_linear)
        self.finish(
            [channels[i] for i in self.out_indices],
            [STRIDES[i] for i in self.out_indices],
            frozen_stages=frozen_stages,
            token_classifier=token_classifier,
        )

    no_weight_decay = swin.SwinTransformer.no_weight_decay
    resize_loaded = swin.SwinTransformer.resize_loaded

    def stages(self, images: Tensor, labels: Tensor | None, count: int, noise: Noise, decisions: list[Tensor]):
        """Yield (tokens (B, L, C), labels (B, L, K) or None, grid) after each of ``count`` stages, before merging."""
        x, size = self.patch_embed(images)
        rows = None if labels is None else labels_to_tokens(labels, size)
        for index, stage in enumerate(self.layers[:count]):
            grids = stage.grids(size, x.device, shift=min(size) > stage.window)
            choice = None
            for number, block in enumerate(stage.blocks):
                if number in stage.locations:
                    which = stage.locations.index(number)
                    predictor, ratio = stage.score_predictor[which], self.keep_ratios[which]
                    x, choice = choose(predictor, x, choice, ratio, stage.training, noise)
                    if stage.training:
                        decisions.append(choice.squeeze(-1))
                chosen = () if choice is None else (choice,)
                x, rows = self.checkpointed(block, x, grids[number % 2], rows, *chosen)
            if isinstance(x, tuple):
                x = blend(choice, *x)
            yield x, rows, size
            if index < count - 1:
                rows = None if rows is None else swin.merge_labels(rows, size)
                x, size = stage.downsample(x, size)

    def dense(self, images, labels):  # noqa: D102
        maps, aligned = [], []
        count = max(self.out_indices, default=-1) + 1
        for index, (x, rows, size) in enumerate(self.stages(images, labels, count, logistic_noise, [])):
            if index in self.out_indices:
                maps.append(labels_to_map(x, size))
                if rows is not None:
                    aligned.append(labels_to_map(rows, size))
        return tuple(maps), tuple(aligned)

    def encode(self, images, labels=None, noise=logistic_noise):  # noqa: D102
        decisions: list[Tensor] = []
        *_, (x, rows, size) = self.stages(images, labels, len(self.layers), noise, decisions)
        x = self.norm(x)
        label = None if rows is None else image_label(labels_to_map(rows, size))
        return Encoded(x.mean(dim=1), x, label, tuple(decisions))

    def stage_modules(self):  # noqa: D102
        return [[self.patch_embed], *([stage] for stage in self.layers)]

    def layer_of(self, name):  # noqa: D102
        parts = name.split(".")
        if parts[0] == "patch_embed":
            return 0
        if parts[0] != "layers":
            return self.depth + 1
        stage = int(parts[1])
        # Patch merging counts with the last block before it, a predictor with the block behind it.
        block = self.depths[stage] - 1
        if parts[2] == "blocks":
            block = int(parts[3])
        elif parts[2] == "score_predictor":
            block = self.layers[stage].locations[int(parts[3])]
        return sum(self.depths[:stage]) + block + 1


class ConvNeXtBlock(nn.Module):
    """x + γ MLP(LN(dwconv x)) with stochastic depth, on (B, H, W, C)."""

    def __init__(self, channels: int, drop_path: float):
        super().__init__()
        self.dwconv = Depthwise(channels, 7)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = Linear(channels, 4 * channels)
        self.pwconv2 = Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, H, W, C)."""
        return residual(x, lambda y: self.slow(self.dwconv(y)), self.drop_path, self.training)

    def slow(self, x: Tensor) -> Tensor:
        """Return the scaled MLP of each token (…, C)."""
        return in_chunks(self.mlp, x, self.pwconv1.out_features)

    def mlp(self, x: Tensor) -> Tensor:
        """Return the same for tokens that are few, or that need a gradient."""
        return self.gamma * self.pwconv2(gelu(self.pwconv1(self.norm(x))))


class ConvNeXtAdaBlock(ConvNeXtBlock):
    """A ConvNeXt block whose MLP has a fast path beside it."""

    def __init__(self, channels: int, drop_path: float):
        super().__init__(channels, drop_path)
        self.fast_path = nn.Sequential(nn.LayerNorm(channels, eps=NORM_EPS), Linear(channels, channels))
        self.fast_path_gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x, choice: Split | Tensor):
        """Return the map (B, H, W, C), or its streams with a mask."""
        if isinstance(choice, Split):
            tokens = self.dwconv(x).flatten(1, 2)
            return x + choice.run(tokens, self.slow, self.fast).view_as(x)
        slow, fast = x
        y = self.dwconv(blend(choice, slow, fast))
        return (
            slow + drop(self.slow(blend(choice, y, slow)), self),
            fast + drop(self.fast(blend(choice, fast, y)), self),
        )

    def fast(self, x: Tensor) -> Tensor:
        """Return the scaled fast path of each token (…, C)."""
        return self.fast_path_gamma * self.fast_path(x)


@MODELS.register_module()
class DynamicConvNeXt(SparseBackbone):
    """DyConvNeXt with un-normalized outputs at strides 4, 8, 16 and 32 (floored).

    Args:
        arch: one of ``archs``.
        in_channels: channels of the images.
        img_size: as in all families; no table of this one depends on it.
        keep_rate: share of positions on the first slow path, where it differs from the published one; 1 has no fast
            paths and no predictors, which is ConvNeXt.
        out_indices: stages (0 to 3) whose maps are returned.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        frozen_stages: −1 freezes nothing, 0 the stem, n also the first n stages.
        with_cp: recompute activations in the backward pass.
        with_embedding: keep the last norm, which only ``embed`` reads.
        token_classifier: arguments of :class:`~mixtransfer.backbones.base.TokenClassifier`, or None.
        init_cfg: OpenMMLab initialization, e.g. ``dict(type="mixtransfer.Pretrained", checkpoint=...)``.
    """

    family = "dynamicvit_convnext"
    label_rule = "pooling"
    drops_tokens = False
    # The repository's model table.
    archs = {
        "dynamicvit_convnext_t_07": ConvNeXtSpec(96, (3, 3, 9, 3), (1, 2, 3), 0.7),
        "dynamicvit_convnext_t_09": ConvNeXtSpec(96, (3, 3, 9, 3), (1, 2, 3), 0.9),
        "dynamicvit_convnext_s_07": ConvNeXtSpec(96, (3, 3, 27, 3), (3, 6, 9), 0.7),
        "dynamicvit_convnext_s_09": ConvNeXtSpec(96, (3, 3, 27, 3), (3, 6, 9), 0.9),
        "dynamicvit_convnext_b_07": ConvNeXtSpec(128, (3, 3, 27, 3), (3, 6, 9), 0.7),
        "dynamicvit_convnext_b_09": ConvNeXtSpec(128, (3, 3, 27, 3), (3, 6, 9), 0.9),
    }
    reported = {
        "dynamicvit_convnext_t_07": Reported(None, 3.6, 81.59, sources=(README,)),
        "dynamicvit_convnext_t_09": Reported(None, 3.9, 82.06, sources=(README,)),
        "dynamicvit_convnext_s_07": Reported(None, 5.8, 82.57, sources=(README,)),
        "dynamicvit_convnext_s_09": Reported(None, 6.8, 83.12, sources=(README,)),
        "dynamicvit_convnext_b_07": Reported(None, 10.2, 83.45, sources=(README,)),
        "dynamicvit_convnext_b_09": Reported(None, 11.9, 83.96, sources=(README,)),
    }
    embed_only = (r"norm\..+",)

    def __init__(
        self,
        arch: str = "dynamicvit_convnext_t_07",
        *,
        in_channels: int = 3,
        img_size: int | tuple[int, int] | None = None,
        keep_rate: float | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        with_embedding: bool = False,
        token_classifier: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(arch, with_cp=with_cp, with_embedding=with_embedding, init_cfg=init_cfg)
        spec = self.archs[arch]
        self.depths, self.depth = spec.depths, sum(spec.depths)
        self.out_indices = check_out_indices(out_indices, len(spec.depths), arch)
        self.keep_ratios = falling_ratios(next_rate(keep_rate, spec.rate, 0.4, arch), len(spec.locations))
        self.locations = spec.locations if self.keep_ratios else ()
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        self.embed_channels = channels[-1]

        self.downsample_layers = nn.ModuleList()
        self.downsample_layers.append(
            nn.Sequential(Patches(in_channels, channels[0], 4), nn.LayerNorm(channels[0], eps=NORM_EPS))
        )
        for small, large in pairwise(channels):
            self.downsample_layers.append(nn.Sequential(nn.LayerNorm(small, eps=NORM_EPS), Patches(small, large, 2)))
        rates = iter(drop_path_rates(drop_path_rate, self.depth))
        self.stages = nn.ModuleList()
        for index, depth in enumerate(spec.depths):
            plain = self.locations[0] if index == SPARSE_STAGE and self.locations else depth
            kinds = [ConvNeXtBlock] * plain + [ConvNeXtAdaBlock] * (depth - plain)
            self.stages.append(nn.Sequential(*(kind(channels[index], next(rates)) for kind in kinds)))
        if self.locations:
            width = channels[SPARSE_STAGE]
            self.score_predictor = nn.ModuleList(Predictor(width, Pointwise, NORM_EPS) for _ in self.locations)
        if with_embedding:
            self.norm = nn.LayerNorm(channels[-1], eps=NORM_EPS)
        self.apply(_init)
        self.finish(
            [channels[i] for i in self.out_indices],
            [STRIDES[i] for i in self.out_indices],
            frozen_stages=frozen_stages,
            token_classifier=token_classifier,
        )

    def run(self, images: Tensor, count: int, noise: Noise, decisions: list[Tensor]):
        """Yield the map (B, H, W, C) after each of the first ``count`` stages."""
        x = images.permute(0, 2, 3, 1)
        for index, (downsample, stage) in enumerate(zip(self.downsample_layers[:count], self.stages, strict=False)):
            x, choice = downsample(x), None
            for number, block in enumerate(stage):
                if index == SPARSE_STAGE and number in self.locations:
                    which = self.locations.index(number)
                    predictor, ratio = self.score_predictor[which], self.keep_ratios[which]
                    x, choice = choose(predictor, x, choice, ratio, stage.training, noise)
                    if stage.training:
                        decisions.append(choice.flatten(1))
                x = self.checkpointed(block, x, *(() if choice is None else (choice,)))
            if isinstance(x, tuple):
                x = blend(choice, *x)
            yield x

    def dense(self, images, labels):  # noqa: D102
        count = max(self.out_indices, default=-1) + 1
        maps = enumerate(self.run(images, count, logistic_noise, []))
        return tuple(x.permute(0, 3, 1, 2) for index, x in maps if index in self.out_indices), None

    def encode(self, images, labels=None, noise=logistic_noise):  # noqa: D102
        decisions: list[Tensor] = []
        *_, x = self.run(images, len(self.stages), noise, decisions)
        label = None if labels is None else image_label(labels)
        return Encoded(self.norm(x.mean(dim=(1, 2))), self.norm(x).flatten(1, 2), label, tuple(decisions))

    def stage_modules(self):  # noqa: D102
        stem, *between = self.downsample_layers
        parts = [[stem], [self.stages[0]], *([d, s] for d, s in zip(between, self.stages[1:], strict=True))]
        if self.locations:
            parts[SPARSE_STAGE + 1].append(self.score_predictor)
        return parts

    def layer_of(self, name):  # noqa: D102
        parts = name.split(".")
        if parts[0] == "stages":
            return sum(self.depths[: int(parts[1])]) + int(parts[2]) + 1
        if parts[0] == "score_predictor":
            return sum(self.depths[:SPARSE_STAGE]) + self.locations[int(parts[1])] + 1
        if parts[0] != "downsample_layers":
            return self.depth + 1
        # A downsampling counts with the block behind it, as in HorNet's published fine-tuning.
        return sum(self.depths[: int(parts[1])]) + 1 if int(parts[1]) else 0

    def no_weight_decay(self):  # noqa: D102
        return {name for name, _ in self.named_parameters() if name.endswith("gamma")}


def falling_ratios(rate: float, count: int) -> tuple[float, ...]:
    """Return the shares on the slow path, 0.2 less after each predictor; none where all positions are slow."""
    # Rounded as the published products of floats are: 196 · (0.7 − 0.2) counts 97 positions, not 98.
    return () if rate == 1 else tuple(rate - 0.2 * number for number in range(count))


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


DynamicSwin.formats = {"official": KeyMap(derived=(r".*\.relative_position_index", r".*\.attn_mask"))}
