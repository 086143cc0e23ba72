"""Swin Transformer: attention in shifted windows, four stages.

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021,
arXiv 2103.14030. Code: microsoft/Swin-Transformer (MIT); dense: SwinTransformer/Swin-Transformer-Object-Detection and
-Semantic-Segmentation (Apache-2.0). mmdet's and mmseg's Swin compute the same dense maps; this one is written for the
token labels and for speed.

Shapes: B batch, L = H·W tokens of a stage, C channels, w window side, G = B·W windows of N = w² tokens, h heads.

Kept from the published code: the classifier drops the shift in stages whose map a window covers (at ``img_size``), the
dense network never does; padding happens after the first norm, so that padded tokens are zeros there and
their keys and values are the biases of the projection; they take part in the attention.
Different: qkv is computed before padding and the projection after cropping; pad, roll and partition are one gather;
masked pairs get −inf instead of −100 (equal to rounding); labels of padding have no mass, and the label of a token
is divided by the mass that it found; ``frozen_stages`` counts as in OpenMMLab; ``train()`` returns the module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend_windows
from mixtransfer.layers.eval_cache import EvalCache
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear, Mlp
from mixtransfer.layers.patches import PatchEmbed
from mixtransfer.layers.positions import relative_bias, relative_position_index, resize_relative_tables
from mixtransfer.layers.residual import residual, residual_with_labels
from mixtransfer.layers.windows import WindowGrid
from mixtransfer.registry import MODELS

__all__ = ["SwinTransformer"]

README = "microsoft/Swin-Transformer, README"
IN22K = "pre-trained on ImageNet-22k"
MASK_RCNN = "COCO: Mask R-CNN, 36 epochs"
CASCADE = "COCO: Cascade Mask R-CNN, 36 epochs"
UPERNET = "ADE20K: UPerNet, 160k iterations, 512 × 512"
PATCH = 4
#: Entries of the published code that follow from sizes.
DERIVED = (r".*\.relative_position_index", r".*\.attn_mask")


@dataclass(frozen=True)
class Spec:
    """One size: first channels, blocks and heads of each stage, window and image side, initial deviation."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    img_size: int = 224
    init_std: float = 0.02


class WindowAttention(nn.Module):
    """Attention inside the windows of a token grid, with a learned bias for each relative position."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(trunc_normal_(table, std=0.02))
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.register_buffer("index", relative_position_index(window, window), persistent=False)
        self.eval_cache = EvalCache()

    def bias(self, grid: WindowGrid) -> Tensor:
        """Return the bias of each pair of a window plus the mask, (1, h, N, N) or (W, h, N, N); kept in evaluation."""
        return self.eval_cache.get(self._bias, grid, of=[self.relative_position_bias_table])

    def _bias(self, grid: WindowGrid) -> Tensor:
        table = self.relative_position_bias_table
        bias = relative_bias(table, self.index).unsqueeze(0)
        return bias.contiguous() if grid.mask is None else bias + grid.mask.to(table.dtype)

    def forward(self, x: Tensor, grid: WindowGrid, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (B, L, C) and the labels each of them attended to (B, L, K)."""
        q, k, v = grid.split(self.qkv(x), self.qkv.bias, self.heads)
        if labels is None:
            out, _ = attend_windows(q, k, v, self.bias(grid))
            return self.proj(grid.merge(out)), None
        rows = grid.cut_labels(labels)
        valid = grid.valid(len(x), rows)
        out, attended = attend_windows(
            q, k, v, self.bias(grid), rows if valid is None else torch.cat([rows, valid], dim=-1)
        )
        if valid is not None:
            attended = attended[..., :-1] / attended[..., -1:]
        return self.proj(grid.merge(out)), grid.merge_labels(attended)


class Block(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), each with stochastic depth."""

    def __init__(self, channels: int, heads: int, window: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = drop_path

    def forward(self, x: Tensor, grid: WindowGrid, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, L, C) and their labels (B, L, K) or None."""
        x, labels = self.attended(x, grid, labels)
        return residual(x, lambda y: self.mlp(self.norm2(y)), self.drop_path, self.training), labels

    def attended(self, x: Tensor, grid: WindowGrid, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, L, C) and their labels behind the attention branch."""
        return residual_with_labels(
            x, labels, lambda y, rows: self.attn(self.norm1(y), grid, rows), self.drop_path, self.training
        )


class PatchMerging(nn.Module):
    """Four neighboring tokens to one of twice the channels; odd sides are padded."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Return tokens (B, h·w, 2C) and their grid (h, w)."""
        x = x.unflatten(1, size)
        if size[0] % 2 or size[1] % 2:
            x = nn.functional.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2))
        # Column-major: (row, column) parities (0,0), (1,0), (0,1), (1,1).
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
        return self.reduction(self.norm(x.flatten(1, 2))), (x.size(1), x.size(2))


def merge_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mean label of the tokens that patch merging joins, (B, H·W, K) -> (B, h·w, K); padding has none."""
    grid = labels_to_map(labels, size)
    # count_include_pad keeps padding out of the mean of a cell at an odd border.
    pooled = nn.functional.avg_pool2d(grid, 2, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


class Stage(nn.Module):
    """Blocks, every second one shifted, and the patch merging that follows them (not in the last stage)."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        drop_paths: Sequence[float],
        merge: bool,
        block: type[Block] = Block,
    ):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(block(channels, heads, window, rate) for rate in drop_paths)
        self.downsample = PatchMerging(channels) if merge else None

    def grids(self, size: tuple[int, int], device: torch.device, shift: bool) -> tuple[WindowGrid, WindowGrid]:
        """Return the windows of a map for even and for odd blocks; the latter are shifted by half a window or not."""
        return tuple(WindowGrid(*size, self.window, s, device) for s in (0, self.window // 2 if shift else 0))


@MODELS.register_module()
class SwinTransformer(Backbone):
    """Swin Transformer with outputs at strides 4, 8, 16 and 32, each with a norm of its own.

    Args:
        img_size: side that the classifier is built for; it decides in which stages ``embed`` drops the shift.
        window: window side, where it differs from the published one; tables are resampled when loading.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "swin"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("layers", -1, "blocks", -1)
    # Published sizes: the paper's section 3.3 and the repository's model table. swin_micro is ours, for two CPU cores;
    # at its widths the published deviation of 0.02 leaves the branches almost silent, and learning starts late.
    archs = {
        "swin_micro": Spec(32, (2, 2, 2, 2), (1, 2, 4, 8), window=4, img_size=64, init_std=0.1),
        "swin_tiny": Spec(96, (2, 2, 6, 2), (3, 6, 12, 24)),
        "swin_tiny_c24": Spec(96, (2, 2, 6, 2), (4, 8, 16, 32), window=8, img_size=256),
        "swin_tiny_w12": Spec(96, (2, 2, 6, 2), (3, 6, 12, 24), window=12, img_size=384),
        "swin_small": Spec(96, (2, 2, 18, 2), (3, 6, 12, 24)),
        "swin_base": Spec(128, (2, 2, 18, 2), (4, 8, 16, 32)),
        "swin_base_w12": Spec(128, (2, 2, 18, 2), (4, 8, 16, 32), window=12, img_size=384),
        "swin_large": Spec(192, (2, 2, 18, 2), (6, 12, 24, 48)),
        "swin_large_w12": Spec(192, (2, 2, 18, 2), (6, 12, 24, 48), window=12, img_size=384),
    }
    reported = {
        "swin_tiny": Reported(28, 4.5, 81.2, 46.0, 41.6, 44.51, (README, MASK_RCNN, UPERNET)),
        "swin_tiny_c24": Reported(28, 5.9, 81.6, sources=(README,)),
        "swin_small": Reported(50, 8.7, 83.2, 48.5, 43.3, 47.64, (README, MASK_RCNN, UPERNET)),
        "swin_base": Reported(88, 15.4, 83.5, 51.9, 45.0, 48.13, (README, CASCADE, UPERNET)),
        "swin_base_w12": Reported(88, 47.1, 84.5, sources=(README,)),
        "swin_large": Reported(197, 34.5, 86.3, sources=(README, IN22K)),
        "swin_large_w12": Reported(197, 103.9, 87.3, sources=(README, IN22K)),
    }
    #: The blocks of each stage.
    block_types: ClassVar[tuple[type[Block], ...]] = (Block,) * 4
    official = KeyMap(derived=DERIVED)
    dense_only = (r"norm\d\..+",)
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid([spec.channels * 2**i for i in range(len(spec.depths))])

    def build(self, spec: Spec, *, img_size: tuple[int, int], window: int | None = None) -> None:
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        window = window or spec.window
        self.img_size = img_size
        self.patch_embed = PatchEmbed(self.in_channels, channels[0], PATCH, nn.LayerNorm(channels[0]))
        rates = iter(self.drop_path_rates())
        stages = zip(channels, spec.heads, spec.depths, self.block_types, strict=True)
        self.layers = nn.ModuleList(
            Stage(c, heads, window, [next(rates) for _ in range(depth)], c < channels[-1], block)
            for c, heads, depth, block in stages
        )
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1])
        self.apply(partial(init_linear, std=spec.init_std))

    def published_norm(self, index, channels):
        return f"norm{index}", nn.LayerNorm(channels)

    def trunk(self, images, labels, count, shifts: Sequence[bool] = (True,) * 4):
        """Yield maps and labels as the contract says; ``shifts`` tells which stages shift their windows."""
        x, size = self.patch_embed(images)
        rows = None if labels is None else labels_to_tokens(labels, size)
        for index, stage in enumerate(self.layers[:count]):
            grids = stage.grids(size, x.device, shifts[index])
            for number, block in enumerate(stage.blocks):
                x, rows = self.checkpointed(block, x, grids[number % 2], rows)
            yield x.unflatten(1, size), None if rows is None else labels_to_map(rows, size)
            if index < count - 1:
                rows = None if rows is None else merge_labels(rows, size)
                x, size = stage.downsample(x, size)

    def embedding(self, images, labels):
        shifts = [min(self.img_size) // (PATCH * 2**i) > stage.window for i, stage in enumerate(self.layers)]
        *_, (x, label) = self.trunk(images, labels, len(self.layers), shifts)
        return self.mean_token(x), None if label is None else image_label(label)

    def stage_modules(self):
        return [[self.patch_embed], *([stage] for stage in self.layers)]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] == "patch_embed":
            return 0
        if parts[0] != "layers":
            return self.depth + 1
        stage = int(parts[1])
        # Patch merging counts with the last block before it.
        block = int(parts[3]) if parts[2] == "blocks" else self.depths[stage] - 1
        return sum(self.depths[:stage]) + block + 1

    def no_weight_decay(self):
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def resize_loaded(self, state):
        return resize_relative_tables(state, self, self.layers[0].window)
