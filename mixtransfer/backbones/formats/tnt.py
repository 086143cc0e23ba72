"""Names of TNT's entries in timm, and timm's network."""

from __future__ import annotations

from torch import nn

from mixtransfer.backbones.formats.key_map import KeyMap, Reorder
from mixtransfer.backbones.tnt import Spec

__all__ = ["FORMATS"]


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from timm.models.tnt import TNT as Network

    size = dict(embed_dim=spec.channels, inner_dim=spec.inner_channels, depth=spec.depth)
    heads = dict(num_heads_inner=spec.inner_heads, num_heads_outer=spec.heads)
    return Network(spec.img_size, in_chans=channels, num_classes=classes or 0, **size, **heads)


FORMATS = {
    "timm": KeyMap(
        renames=(
            ("patch_pos", "outer_pos"),
            ("pixel_pos", "inner_pos"),
            ("pixel_embed.proj.{rest}", "patch_embed.proj.{rest}"),
            ("norm1_proj.{rest}", "proj_norm1.{rest}"),
            ("norm2_proj.{rest}", "proj_norm2.{rest}"),
            ("blocks.{i}.norm_in.{rest}", "blocks.{i}.inner_norm1.{rest}"),
            ("blocks.{i}.attn_in.{rest}", "blocks.{i}.inner_attn.{rest}"),
            ("blocks.{i}.norm_mlp_in.{rest}", "blocks.{i}.inner_norm2.{rest}"),
            ("blocks.{i}.mlp_in.{rest}", "blocks.{i}.inner_mlp.{rest}"),
            ("blocks.{i}.norm1_proj.{rest}", "blocks.{i}.proj_norm1.{rest}"),
            ("blocks.{i}.norm2_proj.{rest}", "blocks.{i}.proj_norm2.{rest}"),
            ("blocks.{i}.norm_out.{rest}", "blocks.{i}.outer_norm1.{rest}"),
            ("blocks.{i}.attn_out.{rest}", "blocks.{i}.outer_attn.{rest}"),
            ("blocks.{i}.norm_mlp.{rest}", "blocks.{i}.outer_norm2.{rest}"),
            ("blocks.{i}.mlp.{rest}", "blocks.{i}.outer_mlp.{rest}"),
        ),
        absent=("outer_tokens",),
        network=_timm,
        reorders=(
            Reorder(
                "inner_pos",
                to_ours=lambda grid: grid.flatten(2).transpose(1, 2),
                to_theirs=lambda rows: rows.transpose(1, 2).unflatten(2, (4, 4)),
            ),
        ),
    ),
}
