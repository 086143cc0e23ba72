"""Names of PVT v2's entries in libraries, and those libraries' networks."""

from __future__ import annotations

from torch import nn

from mixtransfer.backbones.formats.key_map import Fused, KeyMap, Reorder
from mixtransfer.backbones.formats.pvt import KEYS_AND_VALUES, transformers_network
from mixtransfer.backbones.pvt import Spec

__all__ = ["FORMATS"]


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2 as Network

    size = dict(depths=spec.depths, embed_dims=spec.channels, num_heads=spec.heads, mlp_ratios=spec.expansions)
    return Network(channels, classes or 0, linear=spec.linear, **size)


def _mmdet(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from mmdet.models import PyramidVisionTransformerV2 as Network

    width = spec.channels[0]
    if spec.linear or spec.channels != tuple(width * heads for heads in spec.heads):
        return None
    size = dict(embed_dims=width, num_layers=spec.depths, num_heads=spec.heads, mlp_ratios=spec.expansions)
    return Network(in_channels=channels, **size)


FORMATS = {
    "timm": KeyMap(
        renames=(
            ("patch_embed.{rest}", "patch_embed1.{rest}"),
            ("stages.{i}.downsample.{rest}", "patch_embed{i+1}.{rest}"),
            ("stages.{i}.blocks.{j}.mlp.dwconv.{rest}", "block{i+1}.{j}.mlp.dwconv.dwconv.{rest}"),
            ("stages.{i}.blocks.{j}.{rest}", "block{i+1}.{j}.{rest}"),
            ("stages.{i}.norm.{rest}", "norm{i+1}.{rest}"),
        ),
        network=_timm,
    ),
    "mmdet": KeyMap(
        renames=(
            ("layers.{i}.0.projection.{rest}", "patch_embed{i+1}.proj.{rest}"),
            ("layers.{i}.0.norm.{rest}", "patch_embed{i+1}.norm.{rest}"),
            ("layers.{i}.1.{j}.attn.attn.in_proj_{rest}", "block{i+1}.{j}.attn.qkv.{rest}"),
            ("layers.{i}.1.{j}.attn.attn.out_proj.{rest}", "block{i+1}.{j}.attn.proj.{rest}"),
            ("layers.{i}.1.{j}.ffn.layers.0.{rest}", "block{i+1}.{j}.mlp.fc1.{rest}"),
            ("layers.{i}.1.{j}.ffn.layers.1.{rest}", "block{i+1}.{j}.mlp.dwconv.dwconv.{rest}"),
            ("layers.{i}.1.{j}.ffn.layers.4.{rest}", "block{i+1}.{j}.mlp.fc2.{rest}"),
            ("layers.{i}.1.{j}.{rest}", "block{i+1}.{j}.{rest}"),
            ("layers.{i}.2.{rest}", "norm{i+1}.{rest}"),
        ),
        absent=(r"head\..+",),
        reorders=(
            Reorder(
                r"block\d\.\d+\.mlp\.fc[12]\.weight",
                to_ours=lambda kernel: kernel.flatten(1),
                to_theirs=lambda weight: weight[:, :, None, None],
            ),
        ),
        joined=(
            Fused(
                "block{i}.{j}.attn.qkv.{rest}",
                ("block{i}.{j}.attn.q.{rest}", "block{i}.{j}.attn.kv.{rest}"),
                shares=(1, 2),
            ),
        ),
        network=_mmdet,
    ),
    "transformers": KeyMap(
        renames=(
            ("pvt_v2.encoder.layers.{i}.patch_embedding.proj.{rest}", "patch_embed{i+1}.proj.{rest}"),
            ("pvt_v2.encoder.layers.{i}.patch_embedding.layer_norm.{rest}", "patch_embed{i+1}.norm.{rest}"),
            ("pvt_v2.encoder.layers.{i}.blocks.{j}.layer_norm_1.{rest}", "block{i+1}.{j}.norm1.{rest}"),
            ("pvt_v2.encoder.layers.{i}.blocks.{j}.layer_norm_2.{rest}", "block{i+1}.{j}.norm2.{rest}"),
            ("pvt_v2.encoder.layers.{i}.blocks.{j}.attention.query.{rest}", "block{i+1}.{j}.attn.q.{rest}"),
            (
                "pvt_v2.encoder.layers.{i}.blocks.{j}.attention.spatial_reduction.{rest}",
                "block{i+1}.{j}.attn.sr.{rest}",
            ),
            ("pvt_v2.encoder.layers.{i}.blocks.{j}.attention.layer_norm.{rest}", "block{i+1}.{j}.attn.norm.{rest}"),
            ("pvt_v2.encoder.layers.{i}.blocks.{j}.attention.{rest}", "block{i+1}.{j}.attn.{rest}"),
            ("pvt_v2.encoder.layers.{i}.blocks.{j}.mlp.dense1.{rest}", "block{i+1}.{j}.mlp.fc1.{rest}"),
            ("pvt_v2.encoder.layers.{i}.blocks.{j}.mlp.dense2.{rest}", "block{i+1}.{j}.mlp.fc2.{rest}"),
            ("pvt_v2.encoder.layers.{i}.blocks.{j}.mlp.{rest}", "block{i+1}.{j}.mlp.{rest}"),
            ("pvt_v2.encoder.layers.{i}.layer_norm.{rest}", "norm{i+1}.{rest}"),
            ("classifier.{rest}", "head.{rest}"),
        ),
        fused=(KEYS_AND_VALUES,),
        network=lambda *what: transformers_network("PvtV2", *what),
    ),
}
