"""The encoder of MixMIM (MixMAE): Swin's blocks in large windows without a shift, made for images mixed of two.

Paper: Liu et al., "MixMAE: Mixed and Masked Autoencoder for Efficient Pretraining of Hierarchical Vision Transformers",
CVPR 2023, arXiv 2205.13137. Code: Sense-X/MixMIM (its files refer to a license that the repository does not hold);
mmpretrain's ``MixMIMTransformer`` (Apache-2.0) computes the same numbers, but gives one vector of square images.

Shapes: B batch, L = H·W tokens of a stage, C channels of the first stage, K label channels.

Kept from the published code: a frozen two-dimensional sinusoid is added once, after the patch embedding; half of its
channels encode the column, the other half the row; a checkpoint's table is taken as it is (the published ones of
384 pixels hold a resampled, not a fresh, sinusoid). In pretraining a token attends to the tokens of its own image only,
and the mask, whose cells are the tokens of the last stage, is the same for the whole batch.
Different: grids are padded to whole windows after the first norm, as in Swin, and the sinusoid is resampled to the grid
(bicubic). No dense code is published with these networks: the maps are the un-normalized tokens at the end of each
stage, before merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, check_out_indices
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.backbones.swin import Stage, SwinTransformer, merge_labels
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.patches import PatchEmbed
from mixtransfer.layers.positions import resize_position_table, resize_relative_table
from mixtransfer.layers.residual import drop_path_rates
from mixtransfer.layers.windows import WindowGrid
from mixtransfer.registry import MODELS

__all__ = ["MixMIMEncoder", "sinusoid", "xavier_linear"]

README = "Sense-X/MixMIM, README"
UPERNET = "ADE20K: UPerNet, arXiv 2205.13137v1 as listed by Papers with Code"
PATCH = 4
WINDOW = 14
TABLE = "absolute_pos_embed"


@dataclass(frozen=True)
class Spec:
    """One published size: channels of the first stage, blocks and heads of each stage, image side."""

    channels: int
    heads: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 18, 2)
    img_size: int = 224


def sinusoid(channels: int, grid: tuple[int, int]) -> Tensor:
    """Return the position code of a grid, (1, h·w, channels) float32: columns first, each half sines then cosines."""
    rates = 10000 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))

    def axis(side: int) -> Tensor:
        angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = axis(grid[0])[:, None].expand(-1, grid[1], -1), axis(grid[1]).expand(grid[0], -1, -1)
    return torch.cat([columns, rows], dim=-1).float().view(1, grid[0] * grid[1], channels)


def published_windows(sides: Sequence[int]) -> tuple[int, ...]:
    """Return the windows that the published networks of 224, 256 and 384 pixels have for stages of these sides.

    One window covers the last two stages; in the others a whole number of windows does, nearest to 14 tokens wide.
    """
    divisors = ([w for w in range(1, side + 1) if side % w == 0] for side in sides[:-2])
    return (*(min(widths, key=lambda w: (abs(w - WINDOW), -w)) for widths in divisors), *sides[-2:])


@dataclass(frozen=True, eq=False)
class MixedWindows(WindowGrid):
    """Windows with a mask between tokens of different images, (W, 1, N, N) 0 or −inf; equal to no other windows."""

    between: Tensor

    __eq__, __hash__ = object.__eq__, object.__hash__

    @property
    def mask(self) -> Tensor:
        """As in :class:`~mixtransfer.layers.windows.WindowGrid`."""
        return self.between


def mixed_windows(grid: WindowGrid, source: Tensor) -> MixedWindows:
    """Return the windows of a grid whose tokens come from the images ``source`` (1, L, 1)."""
    rows = grid.cut_labels(source)
    differ = rows != rows.transpose(1, 2)
    between = torch.zeros(differ.shape, device=source.device).masked_fill_(differ, -torch.inf).unsqueeze(1)
    return MixedWindows(*grid.key, between)


@MODELS.register_module()
class MixMIMEncoder(Backbone):
    """MixMIM's encoder with outputs at strides 4, 8, 16 and 32.

    Args:
        arch: one of ``archs``.
        in_channels: channels of the images.
        img_size: side that the position table and the windows are made for.
        window: window side of each stage, where it differs from what the published networks have at ``img_size``;
            tables are resampled when loading.
        out_indices: stages (0 to 3) whose maps are returned.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        frozen_stages: −1 freezes nothing, 0 the patch embedding, n also the first n stages.
        with_cp: recompute activations in the backward pass.
        with_embedding: keep the last norm, which ``embed`` and ``encode_mixed`` read.
        token_classifier: arguments of :class:`~mixtransfer.backbones.base.TokenClassifier`, or None.
        init_cfg: OpenMMLab initialization, e.g. ``dict(type="mixtransfer.Pretrained", checkpoint=...)``.
    """

    family = "mixmim"
    label_rule = "attention"
    # Table 1 of the paper and the repository's fine-tuning models.
    archs = {
        "mixmim_base": Spec(128, (4, 8, 16, 32)),
        "mixmim_base_384": Spec(128, (4, 8, 16, 32), img_size=384),
        "mixmim_large": Spec(192, (6, 12, 24, 48)),
        "mixmim_large_384": Spec(192, (6, 12, 24, 48), img_size=384),
        "mixmim_huge": Spec(352, (11, 22, 44, 88)),
    }
    reported = {
        "mixmim_base": Reported(88, 16.3, 85.1, None, None, 50.3, (README, UPERNET)),
        "mixmim_base_384": Reported(89.6, 52.6, 86.3, sources=(README,)),
        "mixmim_large": Reported(197, 35.9, 85.9, sources=(README,)),
        "mixmim_large_384": Reported(199, 112, 86.9, sources=(README,)),
    }
    # The sinusoid is a constant, which a file may lack.
    dense_only = (TABLE,)
    embed_only = (r"norm\..+",)

    def __init__(
        self,
        arch: str = "mixmim_base",
        *,
        in_channels: int = 3,
        img_size: int | tuple[int, int] | None = None,
        window: Sequence[int] | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        with_embedding: bool = False,
        token_classifier: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(arch, with_cp=with_cp, with_embedding=with_embedding, init_cfg=init_cfg)
        spec = self.archs[arch]
        count = len(spec.depths)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size or (spec.img_size,) * 2
        self.grid = (-(-height // PATCH), -(-width // PATCH))
        self.in_channels, self.depths, self.depth = in_channels, spec.depths, sum(spec.depths)
        self.out_indices = check_out_indices(out_indices, count, arch)
        channels = [spec.channels * 2**i for i in range(count)]
        self.embed_channels = channels[-1]
        windows = window or published_windows([-(-min(height, width) // (PATCH * 2**i)) for i in range(count)])

        self.patch_embed = PatchEmbed(in_channels, channels[0], PATCH, nn.LayerNorm(channels[0]))
        self.absolute_pos_embed = nn.Parameter(sinusoid(channels[0], self.grid), requires_grad=False)
        rates = iter(drop_path_rates(drop_path_rate, self.depth))
        self.layers = nn.ModuleList(
            Stage(channels[i], spec.heads[i], windows[i], [next(rates) for _ in range(n)], merge=i < count - 1)
            for i, n in enumerate(spec.depths)
        )
        if with_embedding:
            self.norm = nn.LayerNorm(channels[-1])
        self.apply(xavier_linear)
        self._register_load_state_dict_pre_hook(self._keep_sinusoid)
        self.finish(
            [channels[i] for i in self.out_indices],
            [PATCH * 2**i for i in self.out_indices],
            frozen_stages=frozen_stages,
            token_classifier=token_classifier,
        )

    def run(self, images: Tensor, labels: Tensor | None, stages: int, mask: Tensor | None = None):
        """Yield (tokens (B, L, C), labels (B, L, K) or None, grid) after each of the first ``stages`` stages.

        With ``mask`` (h, w) the tokens where it is 1 come from the reversed batch.
        """
        x, size = self.patch_embed(images)
        if mask is not None:
            x = torch.where(_source(mask, size) == 1, x.flip(0), x)
        x = x + resize_position_table(self.absolute_pos_embed, self.grid, size)
        rows = None if labels is None else labels_to_tokens(labels, size)
        for index, stage in enumerate(self.layers[:stages]):
            grid = WindowGrid(*size, stage.window, 0, x.device)
            if mask is not None:
                grid = mixed_windows(grid, _source(mask, size))
            for block in stage.blocks:
                x, rows = self.checkpointed(block, x, grid, rows)
            yield x, rows, size
            if index < stages - 1:
                rows = None if rows is None else merge_labels(rows, size)
                x, size = stage.downsample(x, size)

    def dense(self, images, labels):  # noqa: D102
        maps, aligned = [], []
        for index, (x, rows, size) in enumerate(self.run(images, labels, max(self.out_indices, default=-1) + 1)):
            if index in self.out_indices:
                maps.append(x.transpose(1, 2).unflatten(2, size))
                if rows is not None:
                    aligned.append(labels_to_map(rows, size))
        return tuple(maps), tuple(aligned)

    def embedding(self, images, labels):  # noqa: D102
        *_, (x, rows, size) = self.run(images, labels, len(self.layers))
        return self.norm(x).mean(dim=1), None if rows is None else image_label(labels_to_map(rows, size))

    def encode_mixed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the last tokens, normalized, of a batch mixed with itself reversed (section 3.1 of the paper).

        Args:
            images: (B, 3, H, W); image i is mixed with image B−1−i.
            mask: (ceil(H / 32), ceil(W / 32)), 1 where a token comes from the partner.

        Returns:
            Tokens (B, h·w, 8C); no token of one image has seen the other.
        """
        *_, (x, _, _) = self.run(images, None, len(self.layers), mask)
        return self.norm(x)

    def stage_modules(self):  # noqa: D102
        return [[self.patch_embed, self.absolute_pos_embed], *([stage] for stage in self.layers)]

    def layer_of(self, name):  # noqa: D102
        parts = name.split(".")
        if parts[0] in ("patch_embed", TABLE):
            return 0
        if parts[0] != "layers":
            return self.depth + 1
        # Patch merging counts with the first block after it, as in the published fine-tuning.
        stage, block = (int(parts[1]), int(parts[3])) if parts[2] == "blocks" else (int(parts[1]) + 1, 0)
        return sum(self.depths[:stage]) + block + 1

    def resize_loaded(self, state):  # noqa: D102
        own, resized = dict(self.named_parameters()), dict(state)
        for key, value in state.items():
            if key not in own or value.shape == own[key].shape:
                continue
            if key.endswith("relative_position_bias_table") and value.shape[1:] == own[key].shape[1:]:
                resized[key] = resize_relative_table(value, self.layers[int(key.split(".")[1])].window)
            side = round(value.size(1) ** 0.5) if key == TABLE else 0
            if side and side * side == value.size(1):
                resized[key] = resize_position_table(value, (side, side), self.grid)
        return resized

    def _keep_sinusoid(self, state: dict[str, Tensor], prefix: str, *_) -> None:
        # A file may lack the constant, or hold zeros in its place as mmpretrain's untrained table does.
        stored = state.get(prefix + TABLE)
        if stored is None or not stored.any():
            state[prefix + TABLE] = self.absolute_pos_embed.detach()


def _source(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which image each token of a grid comes from, (1, L, 1)."""
    return F.interpolate(mask[None, None].float(), size=size, mode="nearest").view(1, -1, 1)


def xavier_linear(module: nn.Module) -> None:
    """Draw a linear layer's weight by Glorot's uniform rule and zero its bias; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_DERIVED = (r".*\.relative_position_index", r".*\.attn_mask")


def _mmpretrain(spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    from mmpretrain.models import ImageClassifier

    if classes is None:
        return None
    arch = dict(embed_dims=spec.channels, depths=spec.depths, num_heads=spec.heads)
    windows = published_windows([spec.img_size // (PATCH * 2**i) for i in range(len(spec.depths))])
    backbone = dict(type="MixMIMTransformer", arch=arch, img_size=spec.img_size, in_channels=channels)
    width = spec.channels * 2 ** (len(spec.depths) - 1)
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=width) if classes else None
    return ImageClassifier(backbone | dict(window_size=windows), head=head)


MixMIMEncoder.formats = {
    "official": KeyMap(derived=_DERIVED),
    "mmpretrain": KeyMap(
        renames=(
            ("patch_embed.projection.{rest}", "patch_embed.proj.{rest}"),
            ("layers.{i}.blocks.{j}.ln1.{rest}", "layers.{i}.blocks.{j}.norm1.{rest}"),
            ("layers.{i}.blocks.{j}.ln2.{rest}", "layers.{i}.blocks.{j}.norm2.{rest}"),
            ("layers.{i}.blocks.{j}.ffn.layers.0.0.{rest}", "layers.{i}.blocks.{j}.mlp.fc1.{rest}"),
            ("layers.{i}.blocks.{j}.ffn.layers.1.{rest}", "layers.{i}.blocks.{j}.mlp.fc2.{rest}"),
            ("head.fc.{rest}", "head.{rest}"),
        ),
        derived=_DERIVED,
        reorders=SwinTransformer.formats["mmpretrain"].reorders,
        network=_mmpretrain,
    ),
}
