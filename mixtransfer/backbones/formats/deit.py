"""Names of ViT's entries in libraries, and those libraries' networks."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from mixtransfer.backbones.base import evenly_spaced
from mixtransfer.backbones.deit import NORM_EPS, Spec
from mixtransfer.backbones.formats.huggingface import HuggingFaceClassifier
from mixtransfer.backbones.formats.key_map import Fused, KeyMap

__all__ = ["FORMATS"]


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
        backbone |= dict(out_type="featmap", out_indices=evenly_spaced(spec.depth), final_norm=False)
    head = dict(type="VisionTransformerClsHead", num_classes=classes, in_channels=spec.channels) if classes else None
    return ImageClassifier(backbone, head=head)


def _mmseg(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from mmseg.models import VisionTransformer as Network

    size = dict(embed_dims=spec.channels, num_layers=spec.depth, num_heads=spec.heads, patch_bias=True)
    read = dict(out_indices=evenly_spaced(spec.depth), norm_cfg=dict(type="LN", eps=NORM_EPS))
    return Network(spec.img_size, spec.patch, in_channels=channels, **size, **read)


_OPENMMLAB = (
    ("patch_embed.projection.{rest}", "patch_embed.proj.{rest}"),
    ("layers.{i}.ln1.{rest}", "blocks.{i}.norm1.{rest}"),
    ("layers.{i}.ln2.{rest}", "blocks.{i}.norm2.{rest}"),
    ("layers.{i}.ffn.layers.0.0.{rest}", "blocks.{i}.mlp.fc1.{rest}"),
    ("layers.{i}.ffn.layers.1.{rest}", "blocks.{i}.mlp.fc2.{rest}"),
)
FORMATS = {
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
