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
where ViT segmentors read them (SETR, Zheng et al., arXiv 2012.15840, reads evenly spaced blocks).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, check_out_indices
from mixtransfer.backbones.formats.huggingface import HuggingFaceClassifier
from mixtransfer.backbones.formats.key_map import Fused, KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend, mix_labels
from mixtransfer.layers.attention_maps import attention_maps
from mixtransfer.layers.drop_path import drop_path_rates, keep_mask, residual
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, Mlp
from mixtransfer.layers.patches import PatchEmbed
from mixtransfer.layers.positions import resize_position_table
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

    def forward(self, x: Tensor, labels: Tensor | None, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, 1+N, C) and their labels (B, 1+N, K) or None; ``bias`` is one of :class:`Attention`."""
        if labels is None and bias is None:
            x = residual(x, lambda y: self.attn(self.norm1(y), None)[0], self.drop_path, self.training)
        else:
            # A sample that drops the branch still moves its labels (TL-Align), so attention runs for all.
            branch, attended = self.attn(self.norm1(x), labels, bias)
            if self.training and self.drop_path:
                branch = branch * keep_mask(len(x), self.drop_path, x)
            x, labels = x + branch, None if attended is None else mix_labels(labels, attended)
        return residual(x, lambda y: self.mlp(self.norm2(y)), self.drop_path, self.training), labels


@MODELS.register_module()
class VisionTransformer(Backbone):
    """DeiT and ViT; outputs have stride 16, a neck makes their pyramid.

    Args:
        arch: one of ``archs``.
        in_channels: channels of the images.
        img_size: side that the position table is made for.
        out_indices: blocks whose patch tokens are returned; default four evenly spaced ones.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        frozen_stages: −1 freezes nothing, 0 the embeddings, n also the first n blocks.
        with_cp: recompute activations in the backward pass.
        with_embedding: keep the last norm, which only ``embed`` reads.
        token_classifier: arguments of :class:`~mixtransfer.backbones.base.TokenClassifier`, or None.
        init_cfg: OpenMMLab initialization, e.g. ``dict(type="mixtransfer.Pretrained", checkpoint=...)``.
    """

    family = "deit"
    label_rule = "attention"
    evidence = ("class_attention", "image_attention", "tokens")
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

    def __init__(
        self,
        arch: str = "deit_small",
        *,
        in_channels: int = 3,
        img_size: int | tuple[int, int] | None = None,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        with_embedding: bool = False,
        token_classifier: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(arch, with_cp=with_cp, with_embedding=with_embedding, init_cfg=init_cfg)
        spec = self.archs[arch]
        size = img_size or spec.img_size
        height, width = (size, size) if isinstance(size, int) else size
        self.grid = (-(-height // spec.patch), -(-width // spec.patch))
        self.depth, self.embed_channels = spec.depth, spec.channels
        if out_indices is None:
            out_indices = _even_blocks(spec.depth)
        self.out_indices = check_out_indices(out_indices, spec.depth, arch)

        self.patch_embed = PatchEmbed(in_channels, spec.channels, spec.patch)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, spec.channels), std=0.02))
        tokens = 1 + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, tokens, spec.channels), std=0.02))
        rates = drop_path_rates(drop_path_rate, spec.depth)
        self.blocks = nn.ModuleList(Block(spec.channels, spec.heads, rate) for rate in rates)
        if with_embedding:
            self.norm = nn.LayerNorm(spec.channels, eps=NORM_EPS)
        self.apply(init_linear)
        self.finish(
            [spec.channels] * len(self.out_indices),
            [spec.patch] * len(self.out_indices),
            frozen_stages=frozen_stages,
            token_classifier=token_classifier,
        )

    def tokens(self, images: Tensor, labels: Tensor | None):
        """Return the embedded tokens (B, 1+N, C), their labels (B, 1+N, K) or None, and the grid (h, w)."""
        x, grid = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + resize_position_table(self.pos_embed, self.grid, grid)
        if labels is not None:
            labels = torch.cat([image_label(labels).unsqueeze(1), labels_to_tokens(labels, grid)], dim=1)
        return x, labels, grid

    def dense(self, images, labels):  # noqa: D102
        x, rows, grid = self.tokens(images, labels)
        maps, aligned = [], []
        for index, block in enumerate(self.blocks[: max(self.out_indices, default=-1) + 1]):
            x, rows = self.checkpointed(block, x, rows)
            if index in self.out_indices:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, grid))
                if rows is not None:
                    aligned.append(labels_to_map(rows[:, 1:], grid))
        return tuple(maps), tuple(aligned)

    def embedding(self, images, labels):  # noqa: D102
        x, rows, _ = self.tokens(images, labels)
        for block in self.blocks:
            x, rows = self.checkpointed(block, x, rows)
        return self.norm(x[:, 0]), None if rows is None else rows[:, 0]

    def embedding_with_evidence(self, images, wanted):  # noqa: D102
        x, _, grid = self.tokens(images, None)
        *blocks, last = self.blocks
        for block in blocks:
            x, _ = self.checkpointed(block, x, None)
        (query, key, _), (bias, _, _) = last.attn.qkv.weight.chunk(3), last.attn.qkv.bias.chunk(3)
        seen = attention_maps(last.norm1, x, query, bias, key, last.attn.heads, grid, wanted)
        x, _ = self.checkpointed(last, x, None)
        if "tokens" in wanted:
            x = self.norm(x)
            return seen | {"vector": x[:, 0], "tokens": x[:, 1:].transpose(1, 2).unflatten(2, grid)}
        return seen | {"vector": self.norm(x[:, 0])}

    def stage_modules(self):  # noqa: D102
        return [[self.patch_embed, self.cls_token, self.pos_embed], *([block] for block in self.blocks)]

    def layer_of(self, name):  # noqa: D102
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed.", "cls_token", "pos_embed")) else self.depth + 1

    def no_weight_decay(self):  # noqa: D102
        return {"pos_embed", "cls_token"}

    def resize_loaded(self, state):  # noqa: D102
        table = state.get("pos_embed")
        if table is None or table.shape == self.pos_embed.shape:
            return state
        side = round((table.size(1) - 1) ** 0.5)
        if table.dim() != 3 or side * side + 1 != table.size(1):
            return state
        return {**state, "pos_embed": resize_position_table(table, (side, side), self.grid)}


def _even_blocks(depth: int) -> list[int]:
    return [depth * i // 4 - 1 for i in range(1, 5)]


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer as Network

    return Network(
        spec.img_size,
        spec.patch,
        channels,
        classes or 0,
        "token",
        spec.channels,
        spec.depth,
        spec.heads,
        weight_init="skip",
    )


def _torchvision(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from torchvision.models.vision_transformer import VisionTransformer as Network

    if classes is None:
        return None
    network = Network(spec.img_size, spec.patch, spec.depth, spec.heads, spec.channels, 4 * spec.channels)
    network.heads = nn.Sequential(OrderedDict(head=nn.Linear(spec.channels, classes))) if classes else nn.Identity()
    network.conv_proj = nn.Conv2d(channels, spec.channels, spec.patch, spec.patch)
    return network


def _transformers(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    if classes is None:
        return None
    size = dict(hidden_size=spec.channels, num_hidden_layers=spec.depth, num_attention_heads=spec.heads)
    size |= dict(intermediate_size=4 * spec.channels, image_size=spec.img_size, patch_size=spec.patch)
    return HuggingFaceClassifier("ViT", classes, num_channels=channels, layer_norm_eps=NORM_EPS, **size)


def _mmpretrain(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from mmpretrain.models import ImageClassifier

    size = dict(embed_dims=spec.channels, num_layers=spec.depth, num_heads=spec.heads)
    backbone = dict(type="VisionTransformer", arch={**size, "feedforward_channels": 4 * spec.channels})
    backbone |= dict(img_size=spec.img_size, patch_size=spec.patch, in_channels=channels)
    if classes is None:
        backbone |= dict(out_type="featmap", out_indices=_even_blocks(spec.depth), final_norm=False)
    head = dict(type="VisionTransformerClsHead", num_classes=classes, in_channels=spec.channels) if classes else None
    return ImageClassifier(backbone, head=head)


def _mmseg(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from mmseg.models import VisionTransformer as Network

    size = dict(embed_dims=spec.channels, num_layers=spec.depth, num_heads=spec.heads, patch_bias=True)
    read = dict(out_indices=_even_blocks(spec.depth), norm_cfg=dict(type="LN", eps=NORM_EPS))
    return Network(spec.img_size, spec.patch, in_channels=channels, **size, **read)


_OPENMMLAB = (
    ("patch_embed.projection.{rest}", "patch_embed.proj.{rest}"),
    ("layers.{i}.ln1.{rest}", "blocks.{i}.norm1.{rest}"),
    ("layers.{i}.ln2.{rest}", "blocks.{i}.norm2.{rest}"),
    ("layers.{i}.ffn.layers.0.0.{rest}", "blocks.{i}.mlp.fc1.{rest}"),
    ("layers.{i}.ffn.layers.1.{rest}", "blocks.{i}.mlp.fc2.{rest}"),
)
VisionTransformer.formats = {
    # OAMixer's masks, which a network without them has no use for; SMMix's second head, of its training only.
    "official": KeyMap(derived=(r"blocks\.\d+\.attn\.mask_scale", r"token_head\..+")),
    "timm": KeyMap(network=_timm),
    "torchvision": KeyMap(
        renames=(
            ("class_token", "cls_token"),
            ("conv_proj.{rest}", "patch_embed.proj.{rest}"),
            ("encoder.pos_embedding", "pos_embed"),
            ("encoder.layers.encoder_layer_{i}.ln_1.{rest}", "blocks.{i}.norm1.{rest}"),
            ("encoder.layers.encoder_layer_{i}.ln_2.{rest}", "blocks.{i}.norm2.{rest}"),
            ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_{rest}", "blocks.{i}.attn.qkv.{rest}"),
            ("encoder.layers.encoder_layer_{i}.self_attention.out_proj.{rest}", "blocks.{i}.attn.proj.{rest}"),
            ("encoder.layers.encoder_layer_{i}.mlp.0.{rest}", "blocks.{i}.mlp.fc1.{rest}"),
            ("encoder.layers.encoder_layer_{i}.mlp.3.{rest}", "blocks.{i}.mlp.fc2.{rest}"),
            ("encoder.ln.{rest}", "norm.{rest}"),
            ("heads.head.{rest}", "head.{rest}"),
        ),
        network=_torchvision,
    ),
    # Names of published files; their configurations have another eps, 1e-12, which the user has to change.
    "transformers": KeyMap(
        renames=(
            ("vit.embeddings.cls_token", "cls_token"),
            ("vit.embeddings.position_embeddings", "pos_embed"),
            ("vit.embeddings.patch_embeddings.projection.{rest}", "patch_embed.proj.{rest}"),
            ("vit.encoder.layer.{i}.layernorm_before.{rest}", "blocks.{i}.norm1.{rest}"),
            ("vit.encoder.layer.{i}.layernorm_after.{rest}", "blocks.{i}.norm2.{rest}"),
            ("vit.encoder.layer.{i}.attention.output.dense.{rest}", "blocks.{i}.attn.proj.{rest}"),
            ("vit.encoder.layer.{i}.attention.attention.{rest}", "blocks.{i}.attn.{rest}"),
            ("vit.encoder.layer.{i}.intermediate.dense.{rest}", "blocks.{i}.mlp.fc1.{rest}"),
            ("vit.encoder.layer.{i}.output.dense.{rest}", "blocks.{i}.mlp.fc2.{rest}"),
            ("vit.layernorm.{rest}", "norm.{rest}"),
            ("classifier.{rest}", "head.{rest}"),
        ),
        fused=(
            Fused(
                "blocks.{i}.attn.qkv.{rest}",
                tuple(f"blocks.{{i}}.attn.{part}.{{rest}}" for part in ("query", "key", "value")),
            ),
        ),
        network=_transformers,
    ),
    "mmpretrain": KeyMap(
        renames=(
            *_OPENMMLAB,
            ("layers.{i}.attn.{rest}", "blocks.{i}.attn.{rest}"),
            ("ln1.{rest}", "norm.{rest}"),
            ("head.layers.head.{rest}", "head.{rest}"),
        ),
        network=_mmpretrain,
    ),
    "mmseg": KeyMap(
        renames=(
            *_OPENMMLAB,
            ("layers.{i}.attn.attn.in_proj_{rest}", "blocks.{i}.attn.qkv.{rest}"),
            ("layers.{i}.attn.attn.out_proj.{rest}", "blocks.{i}.attn.proj.{rest}"),
            ("ln1.{rest}", "norm.{rest}"),
        ),
        absent=(r"(norm|head)\..+",),
        network=_mmseg,
    ),
}
