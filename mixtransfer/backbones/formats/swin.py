"""Names of Swin's entries in libraries, and those libraries' networks."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import Tensor, nn

from mixtransfer.backbones.formats.huggingface import HuggingFaceClassifier
from mixtransfer.backbones.formats.key_map import Fused, KeyMap, Reorder
from mixtransfer.backbones.swin import DERIVED, PATCH, Spec

__all__ = ["FORMATS", "REORDERS"]


# nn.Unfold, which OpenMMLab merges patches with, orders a row by channel, then row-major in the 2 × 2 cell.
def _unfold_to_concat(value: Tensor) -> Tensor:
    cells = value.reshape(*value.shape[:-1], -1, 4)[..., [0, 2, 1, 3]]
    return cells.transpose(-1, -2).reshape(value.shape)


def _concat_to_unfold(value: Tensor) -> Tensor:
    cells = value.reshape(*value.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
    return cells.transpose(-1, -2).reshape(value.shape)


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer as Network

    size = dict(embed_dim=spec.channels, depths=spec.depths, num_heads=spec.heads, window_size=spec.window)
    return Network(spec.img_size, PATCH, channels, classes or 0, **size)


def _torchvision(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from torchvision.models.swin_transformer import SwinTransformer as Network

    if classes is None:
        return None
    network = Network(
        [PATCH] * 2, spec.channels, list(spec.depths), list(spec.heads), [spec.window] * 2, num_classes=classes or 1
    )
    if not classes:
        network.head = nn.Identity()
    network.features[0][0] = nn.Conv2d(channels, spec.channels, PATCH, PATCH)
    return network


def _transformers(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    if classes is None:
        return None
    size = dict(embed_dim=spec.channels, depths=list(spec.depths), num_heads=list(spec.heads))
    size |= dict(window_size=spec.window, image_size=spec.img_size, patch_size=PATCH)
    return HuggingFaceClassifier("Swin", classes, num_channels=channels, **size)


def _mmpretrain(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from mmpretrain.models import ImageClassifier

    width = spec.channels * 2 ** (len(spec.depths) - 1)
    arch = dict(embed_dims=spec.channels, depths=spec.depths, num_heads=spec.heads)
    backbone = dict(type="SwinTransformer", arch=arch, img_size=spec.img_size, window_size=spec.window)
    backbone |= dict(in_channels=channels, out_indices=(0, 1, 2, 3) if classes is None else (3,))
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=width) if classes else None
    network = ImageClassifier(backbone, neck=None if classes is None else dict(type="GlobalAveragePooling"), head=head)
    for index in range(4) if classes is None else ():
        setattr(network.backbone, f"norm{index}", nn.Identity())
    return network


def _dense(library: str) -> Callable[[Spec, int | None, int], nn.Module]:
    def build(spec: Spec, classes: int | None, channels: int) -> nn.Module:
        network = import_module(f"{library}.models").SwinTransformer
        size = dict(embed_dims=spec.channels, depths=spec.depths, num_heads=spec.heads, window_size=spec.window)
        return network(spec.img_size, channels, **size)

    return build


_RENAMES = (
    ("patch_embed.projection.{rest}", "patch_embed.proj.{rest}"),
    ("stages.{i}.blocks.{j}.attn.w_msa.{rest}", "layers.{i}.blocks.{j}.attn.{rest}"),
    ("stages.{i}.blocks.{j}.ffn.layers.0.0.{rest}", "layers.{i}.blocks.{j}.mlp.fc1.{rest}"),
    ("stages.{i}.blocks.{j}.ffn.layers.1.{rest}", "layers.{i}.blocks.{j}.mlp.fc2.{rest}"),
    ("stages.{i}.{rest}", "layers.{i}.{rest}"),
)
REORDERS = (Reorder(r"layers\.\d+\.downsample\.(norm|reduction)\..+", _unfold_to_concat, _concat_to_unfold),)


def _openmmlab(library: str) -> KeyMap:
    return KeyMap(_RENAMES, DERIVED, (r"(norm|head)\..+",), REORDERS, network=_dense(library))


FORMATS = {
    "timm": KeyMap(
        renames=(
            ("layers.{i+1}.downsample.{rest}", "layers.{i}.downsample.{rest}"),
            ("head.fc.{rest}", "head.{rest}"),
        ),
        derived=DERIVED,
        absent=(r"norm\d\..+",),
        network=_timm,
    ),
    "torchvision": KeyMap(
        renames=(
            ("features.0.0.{rest}", "patch_embed.proj.{rest}"),
            ("features.0.2.{rest}", "patch_embed.norm.{rest}"),
            *(
                (f"features.{2 * i + 1}.{{j}}.mlp.0.{{rest}}", f"layers.{i}.blocks.{{j}}.mlp.fc1.{{rest}}")
                for i in range(4)
            ),
            *(
                (f"features.{2 * i + 1}.{{j}}.mlp.3.{{rest}}", f"layers.{i}.blocks.{{j}}.mlp.fc2.{{rest}}")
                for i in range(4)
            ),
            *((f"features.{2 * i + 1}.{{rest}}", f"layers.{i}.blocks.{{rest}}") for i in range(4)),
            *((f"features.{2 * i + 2}.{{rest}}", f"layers.{i}.downsample.{{rest}}") for i in range(3)),
        ),
        derived=DERIVED,
        absent=(r"norm\d\..+",),
        network=_torchvision,
    ),
    # Names of published files.
    "transformers": KeyMap(
        renames=(
            ("swin.embeddings.patch_embeddings.projection.{rest}", "patch_embed.proj.{rest}"),
            ("swin.embeddings.norm.{rest}", "patch_embed.norm.{rest}"),
            ("swin.encoder.layers.{i}.blocks.{j}.layernorm_before.{rest}", "layers.{i}.blocks.{j}.norm1.{rest}"),
            ("swin.encoder.layers.{i}.blocks.{j}.layernorm_after.{rest}", "layers.{i}.blocks.{j}.norm2.{rest}"),
            (
                "swin.encoder.layers.{i}.blocks.{j}.attention.output.dense.{rest}",
                "layers.{i}.blocks.{j}.attn.proj.{rest}",
            ),
            ("swin.encoder.layers.{i}.blocks.{j}.attention.self.{rest}", "layers.{i}.blocks.{j}.attn.{rest}"),
            ("swin.encoder.layers.{i}.blocks.{j}.intermediate.dense.{rest}", "layers.{i}.blocks.{j}.mlp.fc1.{rest}"),
            ("swin.encoder.layers.{i}.blocks.{j}.output.dense.{rest}", "layers.{i}.blocks.{j}.mlp.fc2.{rest}"),
            ("swin.encoder.layers.{i}.downsample.{rest}", "layers.{i}.downsample.{rest}"),
            ("swin.layernorm.{rest}", "norm.{rest}"),
            ("classifier.{rest}", "head.{rest}"),
        ),
        derived=DERIVED,
        absent=(r"norm\d\..+",),
        fused=(
            Fused(
                "layers.{i}.blocks.{j}.attn.qkv.{rest}",
                tuple(f"layers.{{i}}.blocks.{{j}}.attn.{part}.{{rest}}" for part in ("query", "key", "value")),
            ),
        ),
        network=_transformers,
    ),
    "mmdet": _openmmlab("mmdet"),
    "mmseg": _openmmlab("mmseg"),
    "mmpretrain": KeyMap(
        renames=(*_RENAMES, ("norm3.{rest}", "norm.{rest}"), ("head.fc.{rest}", "head.{rest}")),
        derived=DERIVED,
        absent=(r"norm\d\..+",),
        reorders=REORDERS,
        network=_mmpretrain,
    ),
}
