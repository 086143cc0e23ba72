"""DyConvNeXt: ConvNeXt whose less important positions take a fast path through the blocks of the third stage.

Papers: Rao et al., "Dynamic Spatial Sparsification for Efficient Vision Transformers and Convolutional Neural
Networks", T-PAMI 2023, arXiv 2207.01580; ConvNeXt: Liu et al., CVPR 2022, arXiv 2201.03545. Code:
raoyongming/DynamicViT (MIT). Positions are chosen as in ``dynamicvit_swin``; the convolutions see all.

Shapes: B batch, N = H·W positions of the map, C channels; maps are (B, H, W, C) inside.

Kept from the published code: the choice as ``dynamicvit_swin`` describes it; in training each branch is added to its
own stream.
Different: positions are sorted and scores are log-odds, as there. Sides are floored as published, and one that is
shorter than a stride is padded to it. A frozen third stage chooses as in evaluation.
The published code is a classifier; the maps are the stages' outputs, un-normalized. Shares are of the whole map, the
padding of a batch included. Token labels are pooled to each output grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mixtransfer.backbones.base import pyramid
from mixtransfer.backbones.dynamicvit import (
    README,
    Encoded,
    Noise,
    Predictor,
    SparseBackbone,
    next_rate,
)
from mixtransfer.backbones.dynamicvit_swin import SPARSE_STAGE, Split, blend, choose, drop, falling_ratios
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.channels_last import Patches, Pointwise
from mixtransfer.layers.cpu import in_chunks
from mixtransfer.layers.depthwise import Depthwise
from mixtransfer.layers.init import trunc_normal_
from mixtransfer.layers.labels import image_label
from mixtransfer.layers.linear import Linear, gelu
from mixtransfer.layers.residual import residual
from mixtransfer.registry import MODELS

__all__ = ["DynamicConvNeXt"]

NORM_EPS = 1e-6


@dataclass(frozen=True)
class Spec:
    """One published size, the third stage's blocks before which positions are chosen, and the first share kept."""

    channels: int
    depths: tuple[int, ...]
    locations: tuple[int, ...]
    rate: float


class Block(nn.Module):
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


class AdaBlock(Block):
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
        keep_rate: share of positions on the first slow path, where it differs from the published one; 1 has no fast
            paths and no predictors, which is ConvNeXt.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "dynamicvit_convnext"
    label_rule = "pooling"
    drops_tokens = False
    # The repository's model table.
    archs = {
        "dynamicvit_convnext_t_07": Spec(96, (3, 3, 9, 3), (1, 2, 3), 0.7),
        "dynamicvit_convnext_t_09": Spec(96, (3, 3, 9, 3), (1, 2, 3), 0.9),
        "dynamicvit_convnext_s_07": Spec(96, (3, 3, 27, 3), (3, 6, 9), 0.7),
        "dynamicvit_convnext_s_09": Spec(96, (3, 3, 27, 3), (3, 6, 9), 0.9),
        "dynamicvit_convnext_b_07": Spec(128, (3, 3, 27, 3), (3, 6, 9), 0.7),
        "dynamicvit_convnext_b_09": Spec(128, (3, 3, 27, 3), (3, 6, 9), 0.9),
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

    def outputs(self, spec):
        return pyramid([spec.channels * 2**i for i in range(len(spec.depths))])

    def build(self, spec: Spec, *, keep_rate: float | None = None) -> None:
        self.keep_ratios = falling_ratios(next_rate(keep_rate, spec.rate, 0.4, self.arch), len(spec.locations))
        self.locations = spec.locations if self.keep_ratios else ()
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        self.downsample_layers = nn.ModuleList()
        self.downsample_layers.append(
            nn.Sequential(Patches(self.in_channels, channels[0], 4), nn.LayerNorm(channels[0], eps=NORM_EPS))
        )
        for small, large in pairwise(channels):
            self.downsample_layers.append(nn.Sequential(nn.LayerNorm(small, eps=NORM_EPS), Patches(small, large, 2)))
        rates = iter(self.drop_path_rates())
        self.stages = nn.ModuleList()
        for index, depth in enumerate(spec.depths):
            plain = self.locations[0] if index == SPARSE_STAGE and self.locations else depth
            kinds = [Block] * plain + [AdaBlock] * (depth - plain)
            self.stages.append(nn.Sequential(*(kind(channels[index], next(rates)) for kind in kinds)))
        if self.locations:
            width = channels[SPARSE_STAGE]
            self.score_predictor = nn.ModuleList(Predictor(width, Pointwise, NORM_EPS) for _ in self.locations)
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1], eps=NORM_EPS)
        self.apply(_init)

    def trunk(self, images, labels, count, noise: Noise | None = None, decisions: list[Tensor] | None = None):
        """Yield maps as the contract says; relaxed decisions (B, N) are put into ``decisions``."""
        decisions = [] if decisions is None else decisions
        x = images.permute(0, 2, 3, 1)
        for index, (downsample, stage) in enumerate(zip(self.downsample_layers[:count], self.stages, strict=False)):
            x, choice = downsample(x), None
            for number, block in enumerate(stage):
                if index == SPARSE_STAGE and number in self.locations:
                    which = self.locations.index(number)
                    predictor, ratio = self.score_predictor[which], self.keep_ratios[which]
                    x, choice = choose(predictor, x, choice, ratio, noise, decisions)
                x = self.checkpointed(block, x, *(() if choice is None else (choice,)))
            if isinstance(x, tuple):
                x = blend(choice, *x)
            yield x, None

    def encode(self, images, labels=None, noise=None):
        decisions: list[Tensor] = []
        *_, (x, _) = self.trunk(images, None, len(self.stages), noise, decisions)
        label = None if labels is None else image_label(labels)
        self.observe(x, self.norm)
        return Encoded(self.norm(x.mean(dim=(1, 2))), self.norm(x).flatten(1, 2), label, tuple(decisions))

    def stage_modules(self):
        stem, *between = self.downsample_layers
        parts = [[stem], [self.stages[0]], *([d, s] for d, s in zip(between, self.stages[1:], strict=True))]
        if self.locations:
            parts[SPARSE_STAGE + 1].append(self.score_predictor)
        return parts

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] == "stages":
            return sum(self.depths[: int(parts[1])]) + int(parts[2]) + 1
        if parts[0] == "score_predictor":
            return sum(self.depths[:SPARSE_STAGE]) + self.locations[int(parts[1])] + 1
        if parts[0] != "downsample_layers":
            return self.depth + 1
        # A downsampling counts with the block behind it, as in HorNet's published fine-tuning.
        return sum(self.depths[: int(parts[1])]) + 1 if int(parts[1]) else 0

    def no_weight_decay(self):
        return {name for name, _ in self.named_parameters() if name.endswith("gamma")}


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
