"""TNT: a transformer over patches whose every patch is also a little sequence of words, with a transformer of its own.

Paper: Han et al., "Transformer in Transformer", NeurIPS 2021, arXiv 2103.00112. Code:
huawei-noah/Efficient-AI-Backbones, ``tnt_pytorch/tnt.py`` (Apache-2.0). timm's ``tnt_s_patch16_224`` and
``tnt_b_patch16_224`` compute the same numbers, but have neither the labels nor grids of any size; mmpretrain's TNT is
the first arXiv version, a different network.

Shapes: B batch, N = h·w patches behind one class token, D channels of a patch, 16 words of c channels in a patch,
K label channels.

Kept from the published code: the word convolution sees one patch at a time and is zero-padded at the patch's border;
inner norms are over the channels of a word; the projection of words into their patch has a bias at the stem and none in
the blocks; inner branches drop their path patch by patch, not image by image, and the projection never drops.
Different: sides that 16 does not divide are padded (the published network cuts the rest off), and patch positions are
resampled to the grid (bicubic). Words never leave their patch, so labels live on patches and move in the outer
attention only. No dense code is published with these networks: the maps are the un-normalized patch tokens after the
blocks of ``out_indices``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, Mlp, linear
from mixtransfer.layers.patches import grid_of, pad_to_multiple
from mixtransfer.layers.positions import resize_position_table, resize_square_table
from mixtransfer.layers.residual import residual, residual_with_labels
from mixtransfer.registry import MODELS

__all__ = ["TNT"]

README = "huawei-noah/Efficient-AI-Backbones, tnt_pytorch/readme.md"
DENSE = "arXiv 2103.00112, tables 10 and 11 (COCO: DETR, 50 epochs; ADE20K: Trans2Seg, 40k iterations)"
PATCH, WORDS = 16, 16


@dataclass(frozen=True)
class Spec:
    """One published size: channels and heads of the patches, then of the words."""

    channels: int
    heads: int
    inner_channels: int
    inner_heads: int = 4
    depth: int = 12
    img_size: int = 224


class Attention(nn.Module):
    """Multi-head self-attention, queries and keys projected apart from the values, without bias."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qk = Linear(channels, 2 * channels, bias=False)
        self.v = Linear(channels, channels, bias=False)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (B, N, C) and the labels each of them attended to (B, N, K)."""
        batch, tokens, channels = x.shape
        qkv = linear(x, torch.cat([self.qk.weight, self.v.weight]), None)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x, attended = attend(q, k, v, labels)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels)), attended


class Block(nn.Module):
    """Attention and MLP over the words of each patch, words added to their patch, attention and MLP over patches."""

    def __init__(self, spec: Spec, drop_path: float):
        super().__init__()
        inner, outer = spec.inner_channels, spec.channels
        self.inner_norm1 = nn.LayerNorm(inner)
        self.inner_attn = Attention(inner, spec.inner_heads)
        self.inner_norm2 = nn.LayerNorm(inner)
        self.inner_mlp = Mlp(inner, 4 * inner)
        self.proj_norm1 = nn.LayerNorm(WORDS * inner)
        self.proj = Linear(WORDS * inner, outer, bias=False)
        self.proj_norm2 = nn.LayerNorm(outer)
        self.outer_norm1 = nn.LayerNorm(outer)
        self.outer_attn = Attention(outer, spec.heads)
        self.outer_norm2 = nn.LayerNorm(outer)
        self.outer_mlp = Mlp(outer, 4 * outer)
        self.drop_path = drop_path

    def forward(self, words: Tensor, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return words (B·N, 16, c), tokens (B, 1+N, D) and the tokens' labels (B, 1+N, K) or None."""
        rate, training = self.drop_path, self.training
        words = residual(words, lambda y: self.inner_attn(self.inner_norm1(y), None)[0], rate, training)
        words = residual(words, lambda y: self.inner_mlp(self.inner_norm2(y)), rate, training)
        joined = self.proj_norm2(self.proj(self.proj_norm1(words.reshape(x.size(0), x.size(1) - 1, -1))))
        x = torch.cat([x[:, :1], x[:, 1:] + joined], dim=1)
        attention = lambda y, rows: self.outer_attn(self.outer_norm1(y), rows)  # noqa: E731
        x, labels = residual_with_labels(x, labels, attention, rate, training)
        return words, residual(x, lambda y: self.outer_mlp(self.outer_norm2(y)), rate, training), labels


class WordEmbed(nn.Module):
    """Each 16 × 16 patch to a 4 × 4 grid of words by a convolution that does not see beyond the patch."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 7, stride=4, padding=3)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the words (B·N, 16, c) in row-major order, and the grid (h, w) of the patches."""
        images = pad_to_multiple(images, PATCH)
        batch, channels, height, width = images.shape
        h, w = height // PATCH, width // PATCH
        patches = images.view(batch, channels, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5)
        words = self.proj(patches.reshape(batch * h * w, channels, PATCH, PATCH))
        return words.flatten(2).transpose(1, 2), (h, w)


@MODELS.register_module()
class TNT(Backbone):
    """Transformer in Transformer; outputs have stride 16, a neck makes their pyramid.

    Args:
        img_size: side that the position table of the patches is made for.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`; ``with_embedding`` also keeps the published
            ``outer_tokens``, which nothing reads.
    """

    family = "tnt"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("blocks", -1)
    # Table 2 of the paper.
    archs = {
        "tnt_small": Spec(384, 6, 24),
        "tnt_base": Spec(640, 10, 40),
    }
    reported = {
        "tnt_small": Reported(23.8, 5.2, 81.5, 38.2, None, 43.6, (README, DENSE)),
        "tnt_base": Reported(65.6, 14.1, 82.9, sources=(README,)),
    }
    embed_only = (r"norm\..+", "outer_tokens")

    def outputs(self, spec):
        return [(spec.channels, PATCH)] * spec.depth

    def build(self, spec: Spec, *, img_size: tuple[int, int]) -> None:
        def table(rows: int, channels: int) -> nn.Parameter:
            return nn.Parameter(trunc_normal_(torch.empty(1, rows, channels), std=0.02))

        self.grid = grid_of(img_size, PATCH)
        patches = self.grid[0] * self.grid[1]
        self.patch_embed = WordEmbed(self.in_channels, spec.inner_channels)
        self.inner_pos = table(WORDS, spec.inner_channels)
        self.proj_norm1 = nn.LayerNorm(WORDS * spec.inner_channels)
        self.proj = Linear(WORDS * spec.inner_channels, spec.channels)
        self.proj_norm2 = nn.LayerNorm(spec.channels)
        self.cls_token = table(1, spec.channels)
        self.outer_pos = table(1 + patches, spec.channels)
        self.blocks = nn.ModuleList(Block(spec, rate) for rate in self.drop_path_rates())
        if self.with_embedding:
            self.norm = nn.LayerNorm(spec.channels)
            # In every published checkpoint and parameter count; zeros that the published network does not read either.
            self.outer_tokens = nn.Parameter(torch.zeros(1, patches, spec.channels), requires_grad=False)
        self.apply(init_linear)

    def tokens(self, images: Tensor, labels: Tensor | None):
        """Return words (B·N, 16, c), tokens (B, 1+N, D), their labels (B, 1+N, K) or None, and the grid (h, w)."""
        words, grid = self.patch_embed(images)
        words = words + self.inner_pos
        x = self.proj_norm2(self.proj(self.proj_norm1(words.reshape(images.size(0), grid[0] * grid[1], -1))))
        x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1)
        x = x + resize_position_table(self.outer_pos, self.grid, grid)
        if labels is not None:
            labels = torch.cat([image_label(labels).unsqueeze(1), labels_to_tokens(labels, grid)], dim=1)
        return words, x, labels, grid

    def trunk(self, images, labels, count):
        words, x, rows, grid = self.tokens(images, labels)
        for block in self.blocks[:count]:
            words, x, rows = self.checkpointed(block, words, x, rows)
            yield x[:, 1:].unflatten(1, grid), None if rows is None else labels_to_map(rows[:, 1:], grid)

    def embedding(self, images, labels):
        words, x, rows, grid = self.tokens(images, labels)
        for block in self.blocks:
            words, x, rows = self.checkpointed(block, words, x, rows)
        self.observe(x[:, 1:].unflatten(1, grid), self.norm)
        return self.norm(x[:, 0]), None if rows is None else rows[:, 0]

    def stage_modules(self):
        tables = [self.inner_pos, self.cls_token, self.outer_pos]
        stem = [self.patch_embed, self.proj_norm1, self.proj, self.proj_norm2, *tables]
        return [stem, *([block] for block in self.blocks)]

    def layer_of(self, name):
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        stem = ("patch_embed.", "proj.", "proj_norm", "inner_pos", "cls_token", "outer_pos")
        return 0 if name.startswith(stem) else self.depth + 1

    def no_weight_decay(self):
        return {"outer_pos", "inner_pos", "cls_token"}

    def resize_loaded(self, state):
        own = {"outer_pos": self.outer_pos}
        if self.with_embedding:
            own["outer_tokens"] = self.outer_tokens
        tables = {key: resize_square_table(state[key], own[key], self.grid) for key in own if key in state}
        return {**state, **tables}
