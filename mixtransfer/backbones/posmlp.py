"""PosMLP: a gated MLP whose tokens are mixed by a function of their relative position, in windows, four levels.

Paper: Wang et al., "Parameterization of Cross-Token Relations with Relative Positional Encoding for Vision MLP",
ACM MM 2022, arXiv 2207.07284. Code: Zhicaiwww/PosMLP (MIT). No installed library ships the network.

Shapes: B batch, H × W a level's map, N = w² tokens of a window, T tokens of all windows of an image, C channels,
g groups, D = g·V gated channels of which channel v·g + s belongs to group s.

A block is x + s(gate(GELU(e(LN x)))) with linear maps e to 2D and s from D channels; the gate mixes the tokens of the
first half by an N × N matrix of each group and multiplies by the second half. Three kinds of matrices are published:
"gqpe", a softmax over a Gaussian of the offset with a learned center and covariance (the networks of the paper's main
table); "qpe", the same with a round covariance; "lrpe", a learned table of offsets, without softmax, and "lrpe_full",
which adds one learned N × N matrix to it.

Kept from the published code: the offset of columns points from a token to its source, that of rows from the source to
the token; QPE scales its center's term by the squared width, but not the quadratic one; stem norms with eps 1e-6.
Different: maps are padded to whole windows, and what a token gets from padding is left out, its weights being divided
by the mass that lies on tokens (published sizes need no padding, others are refused there); the matrices are kept in
evaluation; tokens lie last inside a block, so that nothing is permuted between its products; LRPE's table is drawn with
deviation 0.02, as the published code means to (there it starts at zero, which closes the gate); no dropout (published:
0.023 behind each block and before the head). Shifted windows, declared by the published code but broken there, are an
option: odd blocks of a level move their windows by half a side, and tokens mix with their neighbors in the image only,
as in Swin.

No dense code is published: the maps are the levels' outputs, un-normalized. No attention: token labels are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, pyramid
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.eval_cache import EvalCache
from mixtransfer.layers.init import trunc_normal_
from mixtransfer.layers.linear import gelu, linear
from mixtransfer.layers.residual import residual
from mixtransfer.layers.token_maps import LearnedMap, QuadraticMap
from mixtransfer.layers.windows import OffsetWindows
from mixtransfer.registry import MODELS

__all__ = ["PosMLP"]

README = "Zhicaiwww/PosMLP, README"
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Spec:
    """One published size: channels and blocks of each level, the expansion, window side and groups of its blocks."""

    channels: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 18, 2)
    ratios: tuple[int, ...] = (4, 4, 4, 2)
    windows: tuple[int, ...] = (14, 14, 14, 7)
    groups: tuple[int, ...] = (8, 16, 32, 64)
    position: str = "gqpe"


class Gate(nn.Module):
    """Mix the tokens of u inside their windows and multiply by v."""

    def __init__(self, window: int, groups: int, position: str):
        super().__init__()
        if position in ("gqpe", "qpe"):
            self.pos = QuadraticMap(window, groups, generalized=position == "gqpe")
        else:
            self.pos = LearnedMap(window, groups)
        self.token_proj_n_weight = None
        if position == "lrpe_full":
            weight = torch.empty(1, window * window, window * window)
            self.token_proj_n_weight = nn.Parameter(trunc_normal_(weight, std=1e-6))
        self.eval_cache = EvalCache()

    def matrices(self) -> Tensor:
        """Return the token-mixing matrices (g, N, N); kept in evaluation."""
        return self.eval_cache.get(self._matrices, of=self.parameters())

    def _matrices(self) -> Tensor:
        # Squared offsets have more digits than bfloat16.
        with torch.autocast(self.pos.token_proj_n_bias.device.type, enabled=False):
            matrices = self.pos()
            return matrices if self.token_proj_n_weight is None else matrices + self.token_proj_n_weight

    def forward(self, u: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """Return mixed u · v.

        Args:
            u: channels of all tokens (D, B·T), sorted by group, windows of N tokens along the last dimension.
            v: like ``u``.
            valid: 1 for tokens and 0 for padding, (T / N, N), or None.
        """
        matrices = self.matrices()
        groups, tokens = matrices.shape[:2]
        if valid is not None:
            u = u.view(-1, *valid.shape) * valid.to(u.dtype)
        mixed = torch.bmm(u.reshape(groups, -1, tokens), matrices.transpose(1, 2))
        if valid is not None and self.pos.normalized:
            with torch.autocast(u.device.type, enabled=False):
                mass = valid.to(matrices.dtype) @ matrices.transpose(1, 2)
            # A token whose sources all lie in padding has no mass and gets nothing from them.
            mass = mass.to(mixed.dtype).clamp_min(torch.finfo(mixed.dtype).tiny)
            mixed = mixed.view(groups, -1, *valid.shape) / mass.unsqueeze(1)
        return (mixed.reshape(-1, tokens) + self.pos.token_proj_n_bias.view(-1)).reshape(v.shape) * v


class Block(nn.Module):
    """x + proj_c_s(gate(GELU(proj_c_e(LN x)))), with stochastic depth."""

    def __init__(self, channels: int, ratio: int, window: int, groups: int, position: str, drop_path: float):
        super().__init__()
        self.groups = groups
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.proj_c_e = nn.Linear(channels, ratio * channels)
        self.proj_c_s = nn.Linear(ratio * channels // 2, channels)
        self.gate_unit = Gate(window, groups, position)
        self.drop_path = drop_path

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Return tokens (B, T, C)."""
        return residual(x, lambda y: self._branch(y, valid), self.drop_path, self.training)

    def _branch(self, x: Tensor, valid: Tensor | None) -> Tensor:
        # The channels of a group are put side by side by sorting the weights, which are smaller than the map.
        expand, shrink = self.proj_c_e, self.proj_c_s
        weight, bias = (p.unflatten(0, (2, -1, self.groups)).transpose(1, 2).flatten(0, 2) for p in expand.parameters())
        tokens = self.norm(x).flatten(0, 1)
        u, v = gelu(linear(weight, tokens, None).add_(bias.unsqueeze(1))).chunk(2)
        gated = self.gate_unit(u, v, valid)
        weight = shrink.weight.unflatten(1, (-1, self.groups)).transpose(1, 2).flatten(1)
        return linear(gated.t(), weight, shrink.bias).view(x.shape)


class PatchEmbed(nn.Module):
    """Three convolutions with BatchNorm to a quarter of the size, (B, 3, H, W) -> (B, H / 4, W / 4, C)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.projs = nn.ModuleList(
            [
                nn.Conv2d(in_channels, channels // 2, 3, 2, 1),
                nn.Conv2d(channels // 2, channels, 3, 2, 1),
                nn.Conv2d(channels, channels, 1),
            ]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(proj.out_channels, eps=NORM_EPS) for proj in self.projs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded map, sides rounded up."""
        for index, (proj, norm) in enumerate(zip(self.projs, self.norms, strict=True)):
            x = norm(proj(x if index == 0 else gelu(x)))
        return x.permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """Depthwise convolution to half the size, (B, H, W, C) -> (B, H / 2, W / 2, C'), and LayerNorm."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, 2, 1, groups=in_channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map, sides rounded up."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Level(nn.Module):
    """Patch merging (not in the first level), then blocks in the same windows."""

    def __init__(self, pool: PatchMerging | None, blocks: Sequence[Block], window: int):
        super().__init__()
        self.window, self.pool, self.encoder = window, pool, nn.ModuleList(blocks)


@MODELS.register_module()
class PosMLP(Backbone):
    """PosMLP with un-normalized outputs at strides 4, 8, 16 and 32.

    Args:
        shift_windows: move the windows of every second block by half a side on maps larger than a window, for dense
            use: otherwise no output sees beyond its 224 pixels. Nothing that is trained changes its shape.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "posmlp"
    label_rule = "pooling"
    # The repository's table and configurations; B is published without one, its channels follow from its 82 million
    # parameters. Millions of parameters: T 20.9, S 36.8, B 82.0, QPE 20.9, LRPE 21.4, full 22.2, three levels 18.8.
    archs = {
        "posmlp_t": Spec((96, 192, 384, 768)),
        "posmlp_s": Spec((128, 256, 512, 1024)),
        "posmlp_b": Spec((192, 384, 768, 1536)),
        "posmlp_t_qpe": Spec((96, 192, 384, 768), position="qpe"),
        "posmlp_t_lrpe": Spec((96, 192, 384, 768), position="lrpe"),
        "posmlp_t_lrpe_full": Spec((96, 192, 384, 768), position="lrpe_full"),
        "posmlp_3t": Spec((96, 192, 384), (2, 2, 20), (4, 4, 4), (14, 14, 14), (8, 16, 32)),
    }
    reported = {
        "posmlp_t": Reported(21, None, 82.1, sources=(README,)),
        "posmlp_s": Reported(37, None, 83.0, sources=(README,)),
        "posmlp_b": Reported(82, None, 83.6, sources=(README,)),
    }
    official = KeyMap(derived=(r".+\.pos\.rel_indices", r".+\.pos\.window_relative_position_index"))
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid(spec.channels)

    def build(self, spec: Spec, *, shift_windows: bool = False) -> None:
        self.shift_windows = shift_windows
        self.patch_embed = PatchEmbed(self.in_channels, spec.channels[0])
        rates = iter(self.drop_path_rates())
        self.levels = nn.ModuleList()
        for index, (channels, depth) in enumerate(zip(spec.channels, spec.depths, strict=True)):
            size = (spec.ratios[index], spec.windows[index], spec.groups[index], spec.position)
            pool = PatchMerging(spec.channels[index - 1], channels) if index else None
            blocks = [Block(channels, *size, next(rates)) for _ in range(depth)]
            self.levels.append(Level(pool, blocks, spec.windows[index]))
        if self.with_embedding:
            self.norm = nn.LayerNorm(spec.channels[-1], eps=NORM_EPS)
        self.apply(_init)

    def trunk(self, images, labels, count):
        x = self.patch_embed(images)
        for level in self.levels[:count]:
            x = x if level.pool is None else level.pool(x)
            grids = [OffsetWindows(tuple(x.shape[1:3]), level.window, shift) for shift in self.shifts(level, x)]
            for number, block in enumerate(level.encoder):
                grid = grids[number % len(grids)]
                # Tokens stay in windows as long as the windows stay.
                x = grid.cut(x) if number == 0 or len(grids) > 1 else x
                x = self.checkpointed(block, x, grid.valid(x.device))
                x = grid.join(x) if number == len(level.encoder) - 1 or len(grids) > 1 else x
            yield x, None

    def shifts(self, level: Level, x: Tensor) -> tuple[int, ...]:
        """Return how far the windows of even and of odd blocks are moved on a map (B, H, W, C)."""
        return (0, level.window // 2) if self.shift_windows and max(x.shape[1:3]) > level.window else (0,)

    def stage_modules(self):
        return [[self.patch_embed], *([level] for level in self.levels)]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] != "levels":
            return 0 if parts[0] == "patch_embed" else self.depth + 1
        # Patch merging counts with the first block behind it.
        block = int(parts[3]) if parts[2] == "encoder" else 0
        return sum(self.depths[: int(parts[1])]) + block + 1


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
