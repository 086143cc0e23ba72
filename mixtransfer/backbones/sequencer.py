"""Sequencer2D: a vision network whose token mixer is a pair of bidirectional LSTMs along columns and rows.

Paper: Tatsunami and Taki, "Sequencer: Deep LSTM for Image Classification", NeurIPS 2022, arXiv 2205.01972. Code:
okojoalg/sequencer (Apache-2.0). timm computes the same numbers; this one copies each map once a direction instead of
twice and leaves out the branches that stochastic depth drops.

Shapes: B batch, (H, W) the map of a stage, C its channels, h hidden channels of an LSTM. Maps are (B, H, W, C) inside.

Kept from the published code: strides 7, 14, 14 and 14; sides are floored, what the strides do not reach at the right
and bottom is not seen; the 1 × 1 convolutions between stages of one stride; the classifier normalizes, then averages.
Different: a side shorter than a stride is padded to it with zeros. No dense code is published: the maps are those
behind the last block of each stage, without norms.
Token labels are pooled to each output grid: no attention moves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.channels_last import Patches
from mixtransfer.layers.init import lecun_normal_
from mixtransfer.layers.linear import Linear, Mlp
from mixtransfer.layers.residual import residual
from mixtransfer.registry import MODELS

__all__ = ["Sequencer2D"]

README = "okojoalg/sequencer, README"
ABSTRACT = "top-1: arXiv 2205.01972, abstract"
NORM_EPS = 1e-6
PATCHES = (7, 2, 1, 1)
STRIDES = tuple(accumulate(PATCHES, mul))


@dataclass(frozen=True)
class Spec:
    """One published size; an LSTM has a quarter of a stage's channels. Nothing depends on the side of the images."""

    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int] = (192, 384, 384, 384)
    img_size: int = 224


class BiLSTM2D(nn.Module):
    """A bidirectional LSTM along each column and one along each row, concatenated and mixed (section 3.2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.rnn_v = nn.LSTM(channels, channels // 4, bidirectional=True)
        self.rnn_h = nn.LSTM(channels, channels // 4, bidirectional=True)
        self.fc = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return new tokens (B, H, W, C)."""
        batch, height, width, _ = x.shape
        # The step of an LSTM is the first axis, all other tokens are its batch. A compiled graph breaks at each LSTM.
        columns, _ = self.rnn_v(x.permute(1, 0, 2, 3).flatten(1, 2))
        rows, _ = self.rnn_h(x.permute(2, 0, 1, 3).flatten(1, 2))
        columns = columns.unflatten(1, (batch, width)).permute(1, 0, 2, 3)
        rows = rows.unflatten(1, (batch, height)).permute(1, 2, 0, 3)
        return self.fc(torch.cat([columns, rows], dim=-1))


class Block(nn.Module):
    """x + BiLSTM2D(LN x), then x + MLP(LN x), each with stochastic depth."""

    def __init__(self, channels: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.rnn_tokens = BiLSTM2D(channels)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_channels = Mlp(channels, 3 * channels)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, H, W, C)."""
        x = residual(x, lambda y: self.rnn_tokens(self.norm1(y)), self.drop_path, self.training)
        return residual(x, lambda y: self.mlp_channels(self.norm2(y)), self.drop_path, self.training)


class Downsample(nn.Module):
    """Patches of the last map of a stage for the next one; the published network keeps it with the former."""

    def __init__(self, channels: int, out_channels: int, patch: int):
        super().__init__()
        self.down = Patches(channels, out_channels, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, ⌊H / p⌋, ⌊W / p⌋, D)."""
        return self.down(x)


@MODELS.register_module()
class Sequencer2D(Backbone):
    """Sequencer2D with outputs at strides 7, 14, 14 and 14 (floored), without norms.

    Args:
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "sequencer2d"
    label_rule = "pooling"
    # Table 5 of the paper and the repository's model functions; the networks at 392 pixels have the same layers, the
    # wider one has neither weights nor a score.
    archs = {
        f"sequencer2d_{size}{suffix}": Spec(depths, img_size=side)
        for size, depths in {"s": (4, 3, 8, 3), "m": (4, 3, 14, 3), "l": (8, 8, 16, 4)}.items()
        for suffix, side in (("", 224), ("_392", 392))
    } | {"sequencer2d_l_d4_3x": Spec((8, 8, 16, 4), (256, 512, 512, 512))}
    reported = {
        "sequencer2d_s": Reported(28, 8.4, 82.3, sources=(README,)),
        "sequencer2d_m": Reported(38, 11.1, 82.8, sources=(README,)),
        "sequencer2d_l": Reported(54, 16.6, 83.4, sources=(README,)),
        "sequencer2d_l_392": Reported(54, None, 84.6, sources=(README, ABSTRACT)),
    }
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return list(zip(spec.channels, STRIDES, strict=True))

    def build(self, spec: Spec) -> None:
        self.stem = nn.ModuleDict({"proj": Patches(self.in_channels, spec.channels[0], PATCHES[0])})
        rates = iter(self.drop_path_rates())
        self.blocks = nn.ModuleList()
        for i, (depth, channels) in enumerate(zip(spec.depths, spec.channels, strict=True)):
            stage: list[nn.Module] = [Block(channels, next(rates)) for _ in range(depth)]
            if i < len(STRIDES) - 1:
                stage.append(Downsample(channels, spec.channels[i + 1], PATCHES[i + 1]))
            self.blocks.append(nn.ModuleList(stage))
        if self.with_embedding:
            self.norm = nn.LayerNorm(spec.channels[-1], eps=NORM_EPS)
        self.apply(_init)

    def trunk(self, images, labels, count):
        x = self.stem["proj"](images.permute(0, 2, 3, 1))
        for index in range(count):
            layers, depth = self.blocks[index], self.depths[index]
            for block in layers[:depth]:
                x = self.checkpointed(block, x)
            yield x, None
            if index < count - 1:
                x = layers[depth](x)

    def stage_modules(self):
        return [[self.stem], *([stage] for stage in self.blocks)]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] != "blocks":
            return 0 if parts[0] == "stem" else self.depth + 1
        stage = int(parts[1])
        # A downsampling counts with the last block before it.
        return sum(self.depths[:stage]) + min(int(parts[2]), self.depths[stage] - 1) + 1


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Patches):
        lecun_normal_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Mlp):
        for layer in (module.fc1, module.fc2):
            nn.init.normal_(layer.bias, std=1e-6)
