"""DeiT and ViT: a class token and image patches through plain transformer blocks.

Papers: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929; Touvron et al., "Training
data-efficient image transformers", ICML 2021, arXiv 2012.12877. Code: facebookresearch/deit (Apache-2.0) and
google-research/vision_transformer (Apache-2.0); TL-Align, TransMix, TokenMix and SMMix train the same networks. timm
computes the same numbers, but it has neither the labels nor grids of any size, so the network is written here.

Shapes: B batch, N = h·w patches behind one class token, C channels, K label channels.

Kept from the published code: LayerNorm with eps 1e-6, learned absolute positions added after the class token is
prepended, one norm after the last block, the class token as the image embedding.
Different: sides that 16 does not divide are padded, and positions are resampled to the grid (bicubic). No dense code is
published with these networks: the maps are the un-normalized patch tokens after the blocks of ``out_indices``, which is
where ViT segmentors read them (SETR, Zheng et al., arXiv 2012.15840, reads evenly spaced blocks). With ``window`` the
dense network is ViTDet's (Li et al., arXiv 2203.16527, section 3): no class token, attention in windows but for four
evenly spaced blocks; its relative positions, which DeiT has no weights for, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, evenly_spaced
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, Mlp
from mixtransfer.layers.patches import PatchEmbed, grid_of
from mixtransfer.layers.positions import resize_position_table, resize_square_table
from mixtransfer.layers.residual import keep_mask, residual, residual_with_labels
from mixtransfer.layers.windows import OffsetWindows, attend_inside
from mixtransfer.registry import MODELS

__all__ = ["VisionTransformer"]

DEIT = "facebookresearch/deit, README_deit.md; multiply-accumulates and parameters: arXiv 2102.12122, table 2"
DEIT_384 = "facebookresearch/deit, README_deit.md"
VIT = "parameters: arXiv 2106.10270, table 1"
VIT_384 = "top-1 after pre-training on ImageNet-21k: google-research/vision_transformer, README"
AT_384 = "the paper's count is that with the position table of 384 pixels"
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Spec:
    """One published size."""

    channels: int
    depth: int
    heads: int
    patch: int = 16
    img_size: int = 224


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, labels: Tensor | None, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (B, 1+N, C) and the labels each of them attended to (B, 1+N, K).

        ``bias`` (B, 1+N, 1+N) is added to the products of queries and keys; no labels travel then.
        """
        batch, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if bias is None:
            x, attended = attend(q, k, v, labels)
        else:
            x, attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None].to(q.dtype)), None
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels)), attended


class Block(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), each with stochastic depth."""

    def __init__(self, channels: int, heads: int, drop_path: float, eps: float = NORM_EPS):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = drop_path

    def forward(
        self, x: Tensor, labels: Tensor | None, bias: Tensor | None = None, windows: OffsetWindows | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, 1+N, C) and their labels (B, 1+N, K) or None; ``bias`` is one of :class:`Attention`.

        With ``windows`` there is no class token, and patches attend inside them.
        """
        if bias is None:
            attend = self.attn if windows is None else partial(attend_inside, windows, self.attn)
            attention = lambda y, rows: attend(self.norm1(y), rows)  # noqa: E731
            x, labels = residual_with_labels(x, labels, attention, self.drop_path, self.training)
        else:
            # A bias belongs to one sample, so attention runs for all.
            branch, labels = self.attn(self.norm1(x), labels, bias)
            dropping = self.training and self.drop_path
            x = x + (branch * keep_mask(len(x), self.drop_path, x) if dropping else branch)
        return residual(x, lambda y: self.mlp(self.norm2(y)), self.drop_path, self.training), labels


@MODELS.register_module()
class VisionTransformer(Backbone):
    """DeiT and ViT; outputs have stride 16, a neck makes their pyramid.

    Args:
        img_size: side that the position table is made for.
        window: side in tokens of the windows that blocks of the dense network attend in, four blocks aside; by default
            all blocks attend globally.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "deit"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("blocks", -1)
    # Tables 1 of both papers; the 21k networks of ViT (Steiner et al., arXiv 2106.10270) differ in size only.
    archs = {
        "deit_tiny": Spec(192, 12, 3),
        "deit_small": Spec(384, 12, 6),
        "deit_base": Spec(768, 12, 12),
        "deit_base_384": Spec(768, 12, 12, img_size=384),
        "vit_tiny": Spec(192, 12, 3),
        "vit_small": Spec(384, 12, 6),
        "vit_small_p32": Spec(384, 12, 6, patch=32),
        "vit_base": Spec(768, 12, 12),
        "vit_base_384": Spec(768, 12, 12, img_size=384),
        "vit_base_p32": Spec(768, 12, 12, patch=32),
        "vit_base_p8": Spec(768, 12, 12, patch=8),
        "vit_large": Spec(1024, 24, 16),
        "vit_large_384": Spec(1024, 24, 16, img_size=384),
        # OAMixer's, arXiv 2212.06595: the same two, trained with masks on their attention.
        "oamixer_deit_t": Spec(192, 12, 3),
        "oamixer_deit_s": Spec(384, 12, 6),
    }
    reported = {
        "deit_tiny": Reported(5.7, 1.3, 72.2, sources=(DEIT,)),
        "deit_small": Reported(22.1, 4.6, 79.9, sources=(DEIT,)),
        "deit_base": Reported(86.6, 17.6, 81.8, sources=(DEIT,)),
        "deit_base_384": Reported(87, None, 82.9, sources=(DEIT_384,)),
        "vit_tiny": Reported(5.8, sources=(VIT,), reason=AT_384),
        "vit_small": Reported(22.2, sources=(VIT,)),
        "vit_base": Reported(86, sources=(VIT,)),
        "vit_base_384": Reported(86, None, 85.49, sources=(VIT, VIT_384)),
        "vit_large": Reported(307, sources=(VIT,)),
        "vit_large_384": Reported(307, None, 85.59, sources=(VIT, VIT_384)),
    }
    embed_only = (r"norm\..+",)

    # OAMixer's masks, which a network without them has no use for; SMMix's second head, of its training only.
    official = KeyMap(derived=(r"blocks\.\d+\.attn\.mask_scale", r"token_head\..+"))

    def outputs(self, spec):
        return [(spec.channels, spec.patch)] * spec.depth

    def build(self, spec: Spec, *, img_size: tuple[int, int], window: int | None = None) -> None:
        self.grid, self.window = grid_of(img_size, spec.patch), window
        self.patch_embed = PatchEmbed(self.in_channels, spec.channels, spec.patch)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, spec.channels), std=0.02))
        tokens = 1 + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, tokens, spec.channels), std=0.02))
        self.blocks = nn.ModuleList(Block(spec.channels, spec.heads, rate) for rate in self.drop_path_rates())
        if self.with_embedding:
            self.norm = nn.LayerNorm(spec.channels, eps=NORM_EPS)
        # A dense network in windows does not read it.
        self.cls_token.requires_grad_(window is None or self.with_embedding)
        self.apply(init_linear)

    def tokens(self, images: Tensor, labels: Tensor | None):
        """Return the embedded tokens (B, 1+N, C), their labels (B, 1+N, K) or None, and the grid (h, w)."""
        x, grid = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1)
        x = x + resize_position_table(self.pos_embed, self.grid, grid)
        if labels is not None:
            labels = torch.cat([image_label(labels).unsqueeze(1), labels_to_tokens(labels, grid)], dim=1)
        return x, labels, grid

    def trunk(self, images, labels, count):
        x, rows, grid = self.tokens(images, labels)
        windows = None if self.window is None else OffsetWindows(grid, self.window)
        first = int(windows is None)
        if windows is not None:
            x, rows = x[:, 1:], None if rows is None else rows[:, 1:]
        for index, block in enumerate(self.blocks[:count]):
            inside = () if windows is None or index in evenly_spaced(self.depth) else (None, windows)
            x, rows = self.checkpointed(block, x, rows, *inside)
            yield x[:, first:].unflatten(1, grid), None if rows is None else labels_to_map(rows[:, first:], grid)

    def embedding(self, images, labels):
        x, rows, grid = self.tokens(images, labels)
        for block in self.blocks:
            x, rows = self.checkpointed(block, x, rows)
        self.observe(x[:, 1:].unflatten(1, grid), self.norm)
        return self.norm(x[:, 0]), None if rows is None else rows[:, 0]

    def stage_modules(self):
        return [[self.patch_embed, self.cls_token, self.pos_embed], *([block] for block in self.blocks)]

    def layer_of(self, name):
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed.", "cls_token", "pos_embed")) else self.depth + 1

    def no_weight_decay(self):
        return {"pos_embed", "cls_token"}

    def resize_loaded(self, state):
        if "pos_embed" not in state:
            return state
        return {**state, "pos_embed": resize_square_table(state["pos_embed"], self.pos_embed, self.grid)}
