"""CaiT: a deep transformer over patches with talking heads, read out by two class-attention blocks.

Paper: Touvron et al., "Going deeper with Image Transformers", ICCV 2021, arXiv 2103.17239. Code:
facebookresearch/deit, ``cait_models.py`` (Apache-2.0). timm computes the same numbers, but has neither the labels nor
grids of any size, so the network is written here.

Shapes: B batch, N = h·w patches, C channels, H heads, K label channels.

Kept from the published code: LayerNorm eps 1e-6; LayerScale on every branch; talking heads, a linear map over the heads
before and after the softmax; the class token enters behind the last patch block and attends to patches and itself;
stochastic depth has one rate in all patch blocks and none in the class blocks.
Different: sides that 16 does not divide are padded, and positions are resampled to the grid (bicubic). No dense code is
published: the maps are the un-normalized patch tokens after the blocks of ``out_indices``, as for DeiT.
Labels move with the attention behind the softmax, and ``image_attention`` is read there, too: the maps that the second
linear map makes of it no longer sum to one. Talking heads need the whole map (B, H, N, N); no fused kernel has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import ClassAttention, attended_labels, mix_labels
from mixtransfer.layers.attention_maps import note
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, Mlp
from mixtransfer.layers.patches import PatchEmbed, grid_of
from mixtransfer.layers.positions import resize_position_table, resize_square_table
from mixtransfer.layers.residual import residual, residual_with_labels
from mixtransfer.registry import MODELS

__all__ = ["CaiT"]

README = "distilled: facebookresearch/deit, README_cait.md"
LISTED = "distilled: arXiv 2103.17239 as listed by Papers with Code"
QUOTED = "distilled: arXiv 2103.17239 as quoted by arXiv 2110.04869, table 3"
NORM_EPS = 1e-6
PATCH = 16
CLASS_BLOCKS = 2


@dataclass(frozen=True)
class Spec:
    """One published size; ``layer_scale`` is the value that LayerScale starts from."""

    channels: int
    depth: int
    heads: int
    layer_scale: float = 1e-5
    img_size: int = 224


class TalkingHeads(nn.Linear):
    """A linear map over the heads of attention maps, (B, H, N, M) -> (B, H, N, M)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the mixed maps."""
        # As a product from the left the maps stay in place, with no permuted copies.
        weight = self.weight.expand(maps.size(0), -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, maps.flatten(2)).view_as(maps)


class TalkingHeadAttention(nn.Module):
    """Self-attention softmax(W₁ · q kᵀ / √d), then W₂ · of it, W over the heads."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(channels, 3 * channels)
        self.proj_l = TalkingHeads(heads, heads)
        self.proj_w = TalkingHeads(heads, heads)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (B, N, C) and the labels each of them attended to (B, N, K)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        note(q, k, mixed=self.proj_l)
        attention = self.proj_l(q * q.size(-1) ** -0.5 @ k.transpose(2, 3)).softmax(dim=-1)
        out = self.proj_w(attention) @ v
        attended = None if labels is None else attended_labels(attention, labels)
        return self.proj(out.transpose(1, 2).flatten(2)), attended


class ScaledBlock(nn.Module):
    """Norms, MLP and LayerScale γ₁, γ₂ around an attention."""

    def __init__(self, spec: Spec, attention: type[nn.Module]):
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.channels, eps=NORM_EPS)
        self.attn = attention(spec.channels, spec.heads)
        self.norm2 = nn.LayerNorm(spec.channels, eps=NORM_EPS)
        self.mlp = Mlp(spec.channels, 4 * spec.channels)
        self.gamma_1 = nn.Parameter(torch.full((spec.channels,), spec.layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((spec.channels,), spec.layer_scale))


class Block(ScaledBlock):
    """x + γ₁ attention(LN x), then x + γ₂ MLP(LN x), each with stochastic depth."""

    def __init__(self, spec: Spec, drop_path: float):
        super().__init__(spec, TalkingHeadAttention)
        self.drop_path = drop_path

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, N, C) and their labels (B, N, K) or None."""
        rate, training = self.drop_path, self.training
        x, labels = residual_with_labels(x, labels, self.attention, rate, training)
        return residual(x, lambda y: self.gamma_2 * self.mlp(self.norm2(y)), rate, training), labels

    def attention(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the attention branch (B, N, C) and the labels that each token attended to."""
        branch, attended = self.attn(self.norm1(x), labels)
        return self.gamma_1 * branch, attended


class ClassBlock(ScaledBlock):
    """The class token c + γ₁ attention(LN [c, x]), then c + γ₂ MLP(LN c); the patches x stay."""

    def __init__(self, spec: Spec):
        super().__init__(spec, ClassAttention)

    def forward(
        self, token: Tensor, x: Tensor, label: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the class token (B, 1, C) and its label (B, 1, K) or None."""
        rows = None if labels is None else torch.cat([label, labels], dim=1)
        branch, attended = self.attn(self.norm1(torch.cat([token, x], dim=1)), rows)
        token = token + self.gamma_1 * branch
        token = token + self.gamma_2 * self.mlp(self.norm2(token))
        return token, None if labels is None else mix_labels(label, attended)


@MODELS.register_module()
class CaiT(Backbone):
    """Class-attention image transformer; outputs have stride 16, a neck makes their pyramid.

    Args:
        img_size: side that the position table is made for.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "cait"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("blocks", -1)
    # Table 3 of the paper; the published weights of xs24, s36, m36 and m48 are those fine-tuned at 384 or 448 pixels.
    archs = {
        "cait_xxs24": Spec(192, 24, 4),
        "cait_xxs24_384": Spec(192, 24, 4, img_size=384),
        "cait_xxs36": Spec(192, 36, 4),
        "cait_xxs36_384": Spec(192, 36, 4, img_size=384),
        "cait_xs24": Spec(288, 24, 6),
        "cait_xs24_384": Spec(288, 24, 6, img_size=384),
        "cait_s24": Spec(384, 24, 8),
        "cait_s24_384": Spec(384, 24, 8, img_size=384),
        "cait_s36": Spec(384, 36, 8, layer_scale=1e-6),
        "cait_s36_384": Spec(384, 36, 8, layer_scale=1e-6, img_size=384),
        "cait_m36": Spec(768, 36, 16, layer_scale=1e-6),
        "cait_m36_384": Spec(768, 36, 16, layer_scale=1e-6, img_size=384),
        "cait_m48": Spec(768, 48, 16, layer_scale=1e-6),
        "cait_m48_448": Spec(768, 48, 16, layer_scale=1e-6, img_size=448),
    }
    reported = {
        "cait_xxs36_384": Reported(17.3, 14.3, 82.2, sources=(LISTED,)),
        "cait_xs24": Reported(26.6, 5.4, 82.0, sources=(QUOTED,)),
        "cait_xs24_384": Reported(27, 19.3, 84.1, sources=(README,)),
        "cait_s24": Reported(47, 9.4, 83.5, sources=(README,)),
        "cait_s24_384": Reported(47, 32.2, 85.1, sources=(README,)),
        "cait_s36_384": Reported(68, 48.0, 85.4, sources=(README,)),
        "cait_m36_384": Reported(271, 173.3, 86.1, sources=(README,)),
        "cait_m48_448": Reported(356, 329.6, 86.5, sources=(README,)),
    }
    embed_only = ("cls_token", r"blocks_token_only\..+", r"norm\..+")

    def outputs(self, spec):
        return [(spec.channels, PATCH)] * spec.depth

    def build(self, spec: Spec, *, img_size: tuple[int, int]) -> None:
        self.grid = grid_of(img_size, PATCH)
        self.patch_embed = PatchEmbed(self.in_channels, spec.channels, PATCH)
        table = torch.empty(1, self.grid[0] * self.grid[1], spec.channels)
        self.pos_embed = nn.Parameter(trunc_normal_(table, std=0.02))
        self.blocks = nn.ModuleList(Block(spec, self.drop_path_rate) for _ in range(spec.depth))
        if self.with_embedding:
            self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, spec.channels), std=0.02))
            self.blocks_token_only = nn.ModuleList(ClassBlock(spec) for _ in range(CLASS_BLOCKS))
            self.norm = nn.LayerNorm(spec.channels, eps=NORM_EPS)
        self.apply(init_linear)

    def tokens(self, images: Tensor, labels: Tensor | None):
        """Return the embedded patches (B, N, C), their labels (B, N, K) or None, and the grid (h, w)."""
        x, grid = self.patch_embed(images)
        x = x + resize_position_table(self.pos_embed, self.grid, grid)
        return x, None if labels is None else labels_to_tokens(labels, grid), grid

    def trunk(self, images, labels, count):
        x, rows, grid = self.tokens(images, labels)
        for block in self.blocks[:count]:
            x, rows = self.checkpointed(block, x, rows)
            yield x.unflatten(1, grid), None if rows is None else labels_to_map(rows, grid)

    def embedding(self, images, labels):
        x, rows, grid = self.tokens(images, labels)
        for block in self.blocks:
            x, rows = self.checkpointed(block, x, rows)
        token = self.cls_token.expand(x.size(0), -1, -1)
        label = None if labels is None else image_label(labels).unsqueeze(1)
        for block in self.blocks_token_only:
            token, label = self.checkpointed(block, token, x, label, rows)
        self.observe(x.unflatten(1, grid), self.norm)
        return self.norm(token[:, 0]), None if label is None else label[:, 0]

    def stage_modules(self):
        return [[self.patch_embed, self.pos_embed], *([block] for block in self.blocks)]

    def layer_of(self, name):
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed.", "pos_embed")) else self.depth + 1

    def no_weight_decay(self):
        return {"pos_embed", "cls_token"} if self.with_embedding else {"pos_embed"}

    def resize_loaded(self, state):
        if "pos_embed" not in state:
            return state
        return {**state, "pos_embed": resize_square_table(state["pos_embed"], self.pos_embed, self.grid)}
