"""RaftMLP: token mixing by an MLP along columns and one along rows, each joined over groups of channels ("rafts").

Paper: Tatsunami and Taki, "RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?",
ACCV 2022, arXiv 2108.04384. Code: okojoalg/raft-mlp (Apache-2.0). No installed library ships the network.

Shapes: B batch, H × W a level's map, P × Q that map at the size that the network is built for, C = r·K channels, where
channel g·K + k is the k-th of raft g.

Kept from the published code: a map of another size is resampled (bicubic) to P × Q before each block's token mixing and
back after it, the residual stream with it; sides that a patch does not divide are resampled, not padded; every mixer
has the same stochastic depth; the first dense map is the patch embedding of level 0, before its blocks.
Different: a patch embedding is one convolution, its smaller kernels added to the center of the largest; a resampling is
two small matrices, never in less precision than the map has; the affine of the norms before the token mixers, published
in order k·r + g, is reordered when loading; ``first_output="blocks"`` returns level 0 after its blocks.

No attention: token labels are pooled to each output. The paper's ablations (one level, other rafts) are not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, pyramid
from mixtransfer.backbones.formats.key_map import KeyMap, Reorder
from mixtransfer.errors import UserError
from mixtransfer.layers.linear import Mlp, gelu
from mixtransfer.layers.patches import COLORS, grid_of, resize_channels
from mixtransfer.layers.residual import residual
from mixtransfer.layers.tables import table
from mixtransfer.registry import MODELS

__all__ = ["RaftMLP"]

RAFTS = 2
PATCHES = (4, 2, 2, 2)
KERNELS = ((4, 8), (2, 4), (2, 4), (2,))


@dataclass(frozen=True)
class Spec:
    """One published size: channels and blocks of each level, image side."""

    channels: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 6, 2)
    img_size: int = 224


@table
def bicubic_matrix(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the (new, old) matrix that resamples a line of ``old`` pixels as ``F.interpolate`` does (bicubic)."""
    lines = torch.eye(old, dtype=torch.float64, device=device).view(1, old, old, 1)
    matrix = F.interpolate(lines, size=(new, 1), mode="bicubic", align_corners=False)[0, :, :, 0].t()
    return matrix.to(dtype).contiguous()


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a map (B, H, W, C) to ``size``, bicubic without antialiasing: (B, h, w, C)."""
    batch, height, width, channels = x.shape
    with torch.autocast(x.device.type, enabled=False):
        if height != size[0]:
            x = bicubic_matrix(height, size[0], x.device, x.dtype) @ x.reshape(batch, height, -1)
            x = x.view(batch, size[0], width, channels)
        if width != size[1]:
            x = bicubic_matrix(width, size[1], x.device, x.dtype) @ x
    return x


class PatchEmbed(nn.Module):
    """Linear embedding of overlapping patches of several sizes around each center, (B, H, W, C) -> (B, h, w, C')."""

    def __init__(self, in_channels: int, channels: int, patch: int, kernels: Sequence[int]):
        super().__init__()
        self.patch, self.kernels = patch, tuple(kernels)
        self.fc = nn.Linear(in_channels * sum(k * k for k in kernels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded map, h = ceil(H / patch)."""
        whole = tuple(-(-side // self.patch) * self.patch for side in x.shape[1:3])
        x = resample(x, whole).permute(0, 3, 1, 2)
        largest = max(self.kernels)
        parts = self.fc.weight.split([x.size(1) * k * k for k in self.kernels], dim=1)
        weight = sum(
            F.pad(part.unflatten(1, (-1, k, k)), [(largest - k) // 2] * 4)
            for part, k in zip(parts, self.kernels, strict=True)
        )
        x = F.conv2d(x, weight, self.fc.bias, stride=self.patch, padding=(largest - self.patch) // 2)
        return x.permute(0, 2, 3, 1)


class TokenMixer(nn.Module):
    """MLP over the tokens of a column (axis 1) or a row (axis 2) in all rafts, behind a LayerNorm over channels."""

    def __init__(self, channels: int, side: int, axis: int):
        super().__init__()
        self.axis = axis
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(RAFTS * side, 2 * RAFTS * side)
        self.fc2 = nn.Linear(2 * RAFTS * side, RAFTS * side)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch of a map (B, P, Q, r, K), same shape."""
        x = self.norm(x.flatten(3)).view(x.shape).transpose(1, self.axis)
        # (B, side, other, r, K) -> one vector over (r, side) for each (other, k).
        x = x.permute(0, 3, 1, 2, 4)
        y = x.reshape(x.size(0), x.size(1) * x.size(2), -1)
        y = _columns(_columns(y, self.fc1, activate=True), self.fc2, activate=False)
        return y.view(x.shape).permute(0, 2, 3, 1, 4).transpose(1, self.axis)


def _columns(x: Tensor, layer: nn.Linear, activate: bool) -> Tensor:
    """Apply a linear layer to the columns of (B, in, N) without transposing them: (B, out, N)."""
    x = torch.baddbmm(layer.bias[:, None], layer.weight.expand(x.size(0), -1, -1), x)
    return gelu(x) if activate else x


class ChannelMixer(Mlp):
    """MLP over the channels of each token, behind a LayerNorm."""

    def __init__(self, channels: int):
        super().__init__(channels, 4 * channels)
        self.norm_in = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch of (B, H, W, C), same shape."""
        return super().forward(self.norm_in(x))


class Block(nn.Module):
    """Column mixer and row mixer on the resampled map, then the channel mixer, each residual with stochastic depth."""

    def __init__(self, channels: int, grid: tuple[int, int], drop_path: float):
        super().__init__()
        self.grid = grid
        self.vertical = TokenMixer(channels, grid[0], axis=1)
        self.horizontal = TokenMixer(channels, grid[1], axis=2)
        self.channel = ChannelMixer(channels)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape (B, H, W, C)."""
        size = x.shape[1:3]
        x = resample(x, self.grid).unflatten(3, (RAFTS, -1))
        x = residual(x, self.vertical, self.drop_path, self.training)
        x = residual(x, self.horizontal, self.drop_path, self.training)
        x = resample(x.flatten(3), size)
        return residual(x, self.channel, self.drop_path, self.training)


class Level(nn.Module):
    """A patch embedding and the blocks behind it."""

    def __init__(self, embed: PatchEmbed, channels: int, grid: tuple[int, int], depth: int, drop_path: float):
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(Block(channels, grid, drop_path) for _ in range(depth))


def _rafts_outside(value: Tensor) -> Tensor:
    return value.view(-1, RAFTS).t().reshape(-1)


def _rafts_inside(value: Tensor) -> Tensor:
    return value.view(RAFTS, -1).t().reshape(-1)


@MODELS.register_module()
class RaftMLP(Backbone):
    """RaftMLP with un-normalized outputs at strides 4, 8, 16 and 32.

    Args:
        img_size: side (or height and width) that the token mixers are built for; other images are resampled to it.
        first_output: the map of output 0, ``"embedding"`` (level 0 before its blocks, as published) or ``"blocks"``.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "raft_mlp"
    label_rule = "pooling"
    # Table 1 of the paper; parameters of the classifiers 9.9, 21.4 and 36.2 million.
    archs = {
        "raft_mlp_s": Spec((64, 128, 256, 512)),
        "raft_mlp_m": Spec((96, 192, 384, 768)),
        "raft_mlp_l": Spec((128, 192, 512, 1024)),
    }
    official = KeyMap(
        renames=(
            ("levels.{i}.fn.0.{rest}", "levels.{i}.embed.{rest}"),
            ("levels.{i}.fn.{j+2}.1.norm.1.{rest}", "levels.{i}.blocks.{j}.vertical.norm.{rest}"),
            ("levels.{i}.fn.{j+2}.1.fn.0.{rest}", "levels.{i}.blocks.{j}.vertical.fc1.{rest}"),
            ("levels.{i}.fn.{j+2}.1.fn.3.{rest}", "levels.{i}.blocks.{j}.vertical.fc2.{rest}"),
            ("levels.{i}.fn.{j+2}.3.norm.1.{rest}", "levels.{i}.blocks.{j}.horizontal.norm.{rest}"),
            ("levels.{i}.fn.{j+2}.3.fn.0.{rest}", "levels.{i}.blocks.{j}.horizontal.fc1.{rest}"),
            ("levels.{i}.fn.{j+2}.3.fn.3.{rest}", "levels.{i}.blocks.{j}.horizontal.fc2.{rest}"),
            ("levels.{i}.fn.{j+2}.5.norm.{rest}", "levels.{i}.blocks.{j}.channel.norm_in.{rest}"),
            ("levels.{i}.fn.{j+2}.5.fn.0.{rest}", "levels.{i}.blocks.{j}.channel.fc1.{rest}"),
            ("levels.{i}.fn.{j+2}.5.fn.3.{rest}", "levels.{i}.blocks.{j}.channel.fc2.{rest}"),
            ("heads.0.1.{rest}", "norm.{rest}"),
            ("classifier.{rest}", "head.{rest}"),
        ),
        reorders=(
            Reorder(r"levels\.\d+\.blocks\.\d+\.(vertical|horizontal)\.norm\..+", _rafts_outside, _rafts_inside),
        ),
    )
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid(spec.channels)

    def build(self, spec: Spec, *, img_size: tuple[int, int], first_output: str = "embedding") -> None:
        if first_output not in ("embedding", "blocks"):
            raise UserError(f"first_output={first_output!r} of {self.arch}: give 'embedding' or 'blocks'")
        self.first_output = first_output
        grid = img_size
        self.levels = nn.ModuleList()
        for index, (channels, depth) in enumerate(zip(spec.channels, spec.depths, strict=True)):
            grid = grid_of(grid, PATCHES[index])
            entering = spec.channels[index - 1] if index else self.in_channels
            embed = PatchEmbed(entering, channels, PATCHES[index], KERNELS[index])
            self.levels.append(Level(embed, channels, grid, depth, self.drop_path_rate))
        if self.with_embedding:
            self.norm = nn.LayerNorm(spec.channels[-1])

    def trunk(self, images, labels, count, first_output: str | None = None):
        """Yield maps as the contract says; ``first_output`` is the option of this name, by default the network's."""
        embedding_first = (first_output or self.first_output) == "embedding"
        x = images.permute(0, 2, 3, 1)
        for index, level in enumerate(self.levels[:count]):
            x = embedded = level.embed(x)
            for block in level.blocks:
                x = self.checkpointed(block, x)
            yield embedded if index == 0 and embedding_first else x, None

    def embedding(self, images, labels):
        *_, (x, _) = self.trunk(images, None, len(self.levels), first_output="blocks")
        return self.mean_token(x), None

    def output_stage(self, index):
        return 0 if index == 0 and self.first_output == "embedding" else index + 1

    def stage_modules(self):
        return [[self.levels[0].embed], [self.levels[0].blocks], *([level] for level in self.levels[1:])]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] != "levels":
            return self.depth + 1
        level = int(parts[1])
        if parts[2] == "embed":
            # A later level's embedding counts with the first block behind it.
            return 0 if level == 0 else sum(self.depths[:level]) + 1
        return sum(self.depths[:level]) + int(parts[3]) + 1

    def resize_loaded(self, state):
        """Fit the first patch embedding, (C, channels · pixels) of each of its patches, to the images' channels."""
        key, embed = "levels.0.embed.fc.weight", self.levels[0].embed
        pixels = [k * k for k in embed.kernels]
        weight = state.get(key)
        if weight is None or weight.dim() != 2 or weight.size(1) != COLORS * sum(pixels):
            return state
        channels = embed.fc.in_features // sum(pixels)
        parts = weight.split([COLORS * n for n in pixels], dim=1)
        parts = [
            resize_channels(part.unflatten(1, (COLORS, k, k)), channels).flatten(1)
            for part, k in zip(parts, embed.kernels, strict=True)
        ]
        return {**state, key: torch.cat(parts, dim=1)}
