"""SReT: every transformer block is applied twice, on slices of the tokens; the second time in a random order.

Paper: Shen, Liu, Xing, "Sliced Recursive Transformer", ECCV 2022, arXiv 2111.05297. Code: szq0214/SReT (MIT).

Shapes: B batch, N = H·W tokens of a stage, C channels, G slices, h heads, K label channels.

Kept from the published code: a block's two passes share all weights, also under both names in the state dict, and each
is followed by an MLP of its own; learned scalars weigh both sides of every sum; the second pass orders the tokens at
random, one order for the whole batch, before it cuts them; rates of stochastic depth count passes, but a block takes
the rate of its number among the blocks, so that they stay below half of what their stage would reach; the embedding is
normalized after the mean.
Different: the random order is the same in every evaluation (published results vary from run to run); slices need not
divide the tokens, the first ones are then one token longer; positions are resampled to the map (bicubic); the scalar of
a branch is multiplied into its last weight. No dense code is published: the maps are the un-normalized tokens at the
end of each stage, strides 8, 16 and 32; there is no fourth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend, mix_labels
from mixtransfer.layers.compiling import constant_in_graphs, plain
from mixtransfer.layers.cpu import in_chunks
from mixtransfer.layers.host_draws import drawn
from mixtransfer.layers.init import trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, gelu, linear
from mixtransfer.layers.patches import grid_of
from mixtransfer.layers.residual import add_, keep_mask
from mixtransfer.layers.tables import table
from mixtransfer.registry import MODELS

__all__ = ["SReT"]

README = "szq0214/SReT, README"
DISTILLED = "distilled, then fine-tuned at its size"
STRIDE, PASSES = 8, 2
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Spec:
    """One published size.

    Attributes:
        head: channels of a head.
        heads: heads of each stage.
        mlp_ratio: widening of the blocks' MLPs.
        projection_ratio: widening of the MLPs between passes.
        slices: slices of the first pass of each stage.
        again: slices of the second pass.
        blocks: distinct blocks of each stage.
        img_size: side that positions are learned for.
    """

    head: int
    heads: tuple[int, ...]
    mlp_ratio: float
    projection_ratio: int
    slices: tuple[int, ...] = (1, 1, 1)
    again: tuple[int, ...] = (1, 1, 1)
    blocks: tuple[int, ...] = (2, 5, 3)
    img_size: int = 224

    @property
    def depths(self) -> tuple[int, ...]:
        """Passes of each stage."""
        return tuple(PASSES * n for n in self.blocks)


class Coefficient(nn.Module):
    """A learned scalar, named as published."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return ``scale`` times the new tokens (B, N, C)."""
        return in_chunks(lambda y: _scaled(self.fc2, gelu(self.fc1(y)), scale), x, self.fc1.out_features)


class Attention(nn.Module):
    """Multi-head self-attention inside slices of the tokens."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def forward(
        self, x: Tensor, scale: Tensor, slices: int, order: tuple[Tensor, Tensor] | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``scale`` times the new tokens (B, N, C), and the labels each of them attended to (B, N, K).

        ``order`` puts the tokens in another order before they are sliced; its second half undoes it.
        """
        qkv = self.qkv(x)
        if order is not None:
            qkv, labels = qkv[:, order[0]], None if labels is None else labels[:, order[0]]
        length, longer = x.size(1) // slices, x.size(1) % slices
        cut = longer * (length + 1)
        parts = [(slice(0, cut), longer), (slice(cut, None), slices - longer if length else 0)]
        done = [
            self.attend_slices(qkv[:, where], count, None if labels is None else labels[:, where])
            for where, count in parts
            if count
        ]
        out, attended = (None if part[0] is None else torch.cat(part, dim=1) for part in zip(*done, strict=True))
        if order is not None:
            out, attended = out[:, order[1]], None if attended is None else attended[:, order[1]]
        return _scaled(self.proj, out, scale), attended

    def attend_slices(self, qkv: Tensor, count: int, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the outputs (B, N, C) and attended labels (B, N, K) of ``count`` slices of one length."""
        batch, tokens, _ = qkv.shape
        heads = qkv.reshape(batch * count, tokens // count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if labels is not None:
            labels = labels.reshape(batch * count, tokens // count, -1)
        out, attended = attend(*heads.unbind(0), labels)
        out = out.transpose(1, 2).reshape(batch, tokens, -1)
        return out, None if attended is None else attended.reshape(batch, tokens, -1)


class Block(nn.Module):
    """a·x + b·attention(LN x), then c·x + d·MLP(LN x), the branches with stochastic depth."""

    def __init__(self, channels: int, heads: int, hidden: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = Mlp(channels, hidden)
        self.coefficient1, self.coefficient2 = Coefficient(), Coefficient()
        self.coefficient3, self.coefficient4 = Coefficient(), Coefficient()
        self.drop_path = drop_path

    def forward(
        self, x: Tensor, slices: int, order: tuple[Tensor, Tensor] | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, N, C) and their labels (B, N, K) or None."""
        branch, attended = self.attn(self.norm1(x), self.coefficient2.bias, slices, order, labels)
        x = self.add(self.coefficient1.bias * x, branch)
        labels = None if labels is None else mix_labels(labels, attended)
        return self.add(self.coefficient3.bias * x, self.mlp(self.norm2(x), self.coefficient4.bias)), labels

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return ``x + branch`` with stochastic depth; at these small rates computing all branches costs little."""
        if self.training and self.drop_path:
            branch = branch * keep_mask(len(x), self.drop_path, x)
        return add_(x, branch)


class Projection(nn.Module):
    """a·x + b·MLP(LN x) after each pass of a block."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = Mlp(channels, hidden)
        self.coefficient1, self.coefficient2 = Coefficient(), Coefficient()

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, C)."""
        return self.coefficient1.bias * x + self.mlp(self.norm1(x), self.coefficient2.bias)


class Stage(nn.Module):
    """Twice each block, every time followed by a projection; ``blocks`` holds the shared ones twice."""

    def __init__(self, spec: Spec, index: int, drop_paths: Sequence[float]):
        super().__init__()
        self.slices = spec.slices[index], spec.again[index]
        channels, parts = spec.head * spec.heads[index], []
        for rate in drop_paths:
            block = Block(channels, spec.heads[index], int(channels * spec.mlp_ratio), rate)
            for _ in range(PASSES):
                parts += [block, Projection(channels, channels * spec.projection_ratio)]
        self.blocks = nn.ModuleList(parts)


class Stem(nn.Module):
    """Three convolutions of stride 2, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        widths = [in_channels, channels // 2, channels, channels]
        for i in range(1, 4):
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], 3, stride=2, padding=1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, C, ceil(H / 8), ceil(W / 8))."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)))


class Pool(nn.Module):
    """A map to half the sides and more channels, by a strided convolution of each channel alone."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map."""
        return self.conv(x)


# A compiled graph takes the order as a constant, as it cannot trace a generator.
@constant_in_graphs
@table
def seeded_order(tokens: int, number: int, device: torch.device) -> Tensor:
    """Return the order of ``tokens`` tokens in the ordering pass of this number, always the same one."""
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(number)).to(device)


def _order(tokens: int) -> tuple[Tensor]:
    return (torch.randperm(tokens),)


@MODELS.register_module()
class SReT(Backbone):
    """Sliced Recursive Transformer with outputs at strides 8, 16 and 32.

    Args:
        img_size: side that positions are made for.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.

    Attributes:
        orders: (N, number) -> the order (N,) of N tokens in the pass of this number among those that order them; put
            recorded orders here, all others are drawn: in training from torch's generator, in evaluation from a seed.
    """

    family = "sret"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("transformers", -1, "blocks", -2)
    # Table 7 of the paper's appendix and the repository's entry points, which mark "wo_slice" with a star.
    archs = {
        "sret_tiny": Spec(32, (2, 4, 8), 3.6, 1, (8, 4, 1), (2, 1, 1)),
        "sret_tiny_wo_slice": Spec(32, (2, 4, 8), 3.6, 1),
        "sret_tiny_wo_slice_384": Spec(32, (2, 4, 8), 3.6, 1, img_size=384),
        "sret_lt": Spec(32, (2, 4, 8), 4.0, 1, (8, 4, 1), (2, 1, 1)),
        "sret_lt_16_14": Spec(32, (2, 4, 8), 4.0, 1, (16, 14, 1)),
        "sret_lt_wo_slice": Spec(32, (2, 4, 8), 4.0, 1),
        "sret_small": Spec(42, (3, 6, 12), 3.0, 2, (8, 4, 1), (2, 1, 1)),
        "sret_small_wo_slice": Spec(42, (3, 6, 12), 3.0, 2),
        "sret_small_wo_slice_384": Spec(42, (3, 6, 12), 3.0, 2, img_size=384),
        "sret_small_wo_slice_512": Spec(42, (3, 6, 12), 3.0, 2, img_size=512),
    }
    reported = {
        "sret_tiny": Reported(4.8, 1.1, 76.0, sources=(README,)),
        "sret_tiny_wo_slice": Reported(4.8, 1.4, 76.1, sources=(README,)),
        "sret_tiny_wo_slice_384": Reported(4.9, 6.4, 79.7, sources=(README, DISTILLED)),
        "sret_lt": Reported(5.0, 1.2, 76.7, sources=(README,)),
        "sret_lt_16_14": Reported(5.0, 1.2, 76.6, sources=(README,)),
        "sret_lt_wo_slice": Reported(5.0, 1.4, 76.8, sources=(README,)),
        "sret_small": Reported(20.9, 4.2, 81.9, sources=(README,)),
        "sret_small_wo_slice": Reported(20.9, 4.7, 82.0, sources=(README,)),
        "sret_small_wo_slice_384": Reported(21.0, 18.5, 83.8, sources=(README, DISTILLED)),
        "sret_small_wo_slice_512": Reported(21.3, 42.8, 84.3, sources=(README, DISTILLED)),
    }
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid([spec.head * heads for heads in spec.heads], STRIDE)

    def build(self, spec: Spec, *, img_size: tuple[int, int]) -> None:
        channels = [spec.head * heads for heads in spec.heads]
        self.orders: dict[tuple[int, int], Tensor] = {}
        self.patch_embed = Stem(self.in_channels, channels[0])
        grid = grid_of(img_size, STRIDE)
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, channels[0], *grid), std=0.02))
        starts = [sum(self.depths[:i]) for i in range(len(spec.blocks))]
        self.transformers = nn.ModuleList(
            Stage(spec, i, [self.drop_path_rate * (starts[i] + j) / self.depth for j in range(n)])
            for i, n in enumerate(spec.blocks)
        )
        self.pools = nn.ModuleList(Pool(a, b) for a, b in pairwise(channels))
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1], eps=NORM_EPS)

    def order(self, tokens: int, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the order of the tokens in an ordering pass, and the order that undoes it."""
        if (tokens, number) in self.orders:
            order = self.orders[tokens, number].to(device)
        elif self.training and not torch.compiler.is_compiling():
            (order,) = drawn(_order, tokens, device=device)
        else:
            order = torch.randperm(tokens, device=device) if self.training else seeded_order(tokens, number, device)
        return order, order.argsort()

    def trunk(self, images, labels, count):
        x = self.patch_embed(images)
        positions = self.pos_embed
        if positions.shape[2:] != x.shape[2:]:
            positions = F.interpolate(positions, size=x.shape[2:], mode="bicubic", align_corners=False)
        x, rows, ordered = x + positions, None, 0
        for index, stage in enumerate(self.transformers[:count]):
            if index:
                x = self.pools[index - 1](x)
            size = x.shape[2:]
            x = x.flatten(2).transpose(1, 2)
            if labels is not None:
                rows = labels_to_tokens(labels, tuple(size))
            first, again = stage.slices
            for number in range(0, len(stage.blocks), 2):
                block, projection = stage.blocks[number], stage.blocks[number + 1]
                second = number // 2 % PASSES == 1
                slices, order = again if second else first, None
                if second and slices > 1:
                    order = self.order(plain(x.size(1)), ordered, x.device)
                    ordered += 1
                x, rows = self.checkpointed(block, x, slices, order, rows)
                x = self.checkpointed(projection, x)
            x = x.transpose(1, 2).unflatten(2, size)
            labels = None if rows is None else labels_to_map(rows, size)
            yield x.permute(0, 2, 3, 1), labels

    def embedding(self, images, labels):
        *_, (x, label) = self.trunk(images, labels, len(self.transformers))
        self.observe(x, self.norm)
        return self.norm(x.mean(dim=(1, 2))), None if label is None else image_label(label)

    def stage_modules(self):
        pools = [*([pool] for pool in self.pools), []]
        stages = [[stage, *pool] for stage, pool in zip(self.transformers, pools, strict=True)]
        return [[self.patch_embed, self.pos_embed], *stages]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] in ("patch_embed", "pos_embed"):
            return 0
        # A layer is a pass with its projection; a shared block counts with its first pass, a pool with the last.
        if parts[0] == "pools":
            return sum(self.depths[: int(parts[1]) + 1])
        if parts[0] == "transformers":
            return sum(self.depths[: int(parts[1])]) + int(parts[3]) // 2 + 1
        return self.depth + 1

    def no_weight_decay(self):
        return {"pos_embed"}

    def resize_loaded(self, state):
        table = state.get("pos_embed")
        if table is None or table.dim() != 4 or table.shape[:2] != self.pos_embed.shape[:2]:
            return state
        size = self.pos_embed.shape[2:]
        if table.shape[2:] == size:
            return state
        return {**state, "pos_embed": F.interpolate(table, size=size, mode="bicubic", align_corners=False)}


def _scaled(layer: nn.Linear, x: Tensor, scale: Tensor) -> Tensor:
    return linear(x, layer.weight * scale, layer.bias * scale)
