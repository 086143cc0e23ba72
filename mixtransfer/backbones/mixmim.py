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
(bicubic); as an option, for dense use, odd blocks shift their windows where a map is larger than one. No dense code is
published with these networks: the maps are the un-normalized tokens at the end of each stage, before merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.backbones.swin import DERIVED, Stage, merge_labels
from mixtransfer.layers.labels import labels_to_map, labels_to_tokens
from mixtransfer.layers.patches import PatchEmbed, grid_of
from mixtransfer.layers.positions import resize_position_table, resize_relative_table, resize_square_table
from mixtransfer.layers.windows import WindowGrid
from mixtransfer.registry import MODELS

__all__ = ["MixMIMEncoder", "sinusoid", "xavier_linear"]

README = "Sense-X/MixMIM, README"
UPERNET = "ADE20K: UPerNet, arXiv 2205.13137v1 as listed by Papers with Code"
PATCH = 4
WINDOW = 14
TABLE = "absolute_pos_embed"
#: Last stages whose window covers the images of pretraining.
GLOBAL_STAGES = 2


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
        img_size: side that the position table and the windows are made for.
        window: window side of each stage, where it differs from what the published networks have at ``img_size``;
            tables are resampled when loading.
        shift_windows: shift the windows of every second block of the last two stages by half a side, as Swin does, on
            maps larger than a window: otherwise no output sees beyond one window, which is the whole image only at
            ``img_size``. For dense use; a pretraining mask keeps the windows where they are.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "mixmim"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("layers", -1, "blocks", -1)
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
    official = KeyMap(derived=DERIVED)
    # The sinusoid is a constant, which a file may lack.
    dense_only = (TABLE,)
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid([spec.channels * 2**i for i in range(len(spec.depths))])

    def build(
        self,
        spec: Spec,
        *,
        img_size: tuple[int, int],
        window: Sequence[int] | None = None,
        shift_windows: bool = False,
    ) -> None:
        self.shift_windows = shift_windows
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        windows = window or published_windows([-(-min(img_size) // (PATCH * 2**i)) for i in range(len(spec.depths))])
        self.grid = grid_of(img_size, PATCH)
        self.patch_embed = PatchEmbed(self.in_channels, channels[0], PATCH, nn.LayerNorm(channels[0]))
        self.absolute_pos_embed = nn.Parameter(sinusoid(channels[0], self.grid), requires_grad=False)
        rates = iter(self.drop_path_rates())
        self.layers = nn.ModuleList(
            Stage(channels[i], spec.heads[i], windows[i], [next(rates) for _ in range(n)], i < len(spec.depths) - 1)
            for i, n in enumerate(spec.depths)
        )
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1])
        self.apply(xavier_linear)
        self._register_load_state_dict_pre_hook(self._keep_sinusoid)

    def trunk(self, images, labels, count, mask: Tensor | None = None):
        """Yield maps and labels as the contract says; where ``mask`` (h, w) is 1 tokens are of the reversed batch."""
        x, size = self.patch_embed(images)
        if mask is not None:
            x = torch.where(_source(mask, size) == 1, x.flip(0), x)
        x = x + resize_position_table(self.absolute_pos_embed, self.grid, size)
        rows = None if labels is None else labels_to_tokens(labels, size)
        for index, stage in enumerate(self.layers[:count]):
            shift = self.shift_windows and index >= len(self.layers) - GLOBAL_STAGES and max(size) > stage.window
            grids = stage.grids(size, x.device, shift and mask is None)
            if mask is not None:
                grids = (mixed_windows(grids[0], _source(mask, size)),) * 2
            for number, block in enumerate(stage.blocks):
                x, rows = self.checkpointed(block, x, grids[number % 2], rows)
            yield x.unflatten(1, size), None if rows is None else labels_to_map(rows, size)
            if index < count - 1:
                rows = None if rows is None else merge_labels(rows, size)
                x, size = stage.downsample(x, size)

    def encode_mixed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the last tokens, normalized, of a batch mixed with itself reversed (section 3.1 of the paper).

        The last norm is among the layers that ``with_embedding`` keeps.

        Args:
            images: (B, 3, H, W); image i is mixed with image B−1−i.
            mask: (ceil(H / 32), ceil(W / 32)), 1 where a token comes from the partner.

        Returns:
            Tokens (B, h·w, 8C); no token of one image has seen the other.
        """
        with self._pass(images):
            *_, (x, _) = self.trunk(images, None, len(self.layers), mask)
        return self.norm(x).flatten(1, 2)

    def stage_modules(self):
        return [[self.patch_embed, self.absolute_pos_embed], *([stage] for stage in self.layers)]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] in ("patch_embed", TABLE):
            return 0
        if parts[0] != "layers":
            return self.depth + 1
        # Patch merging counts with the first block after it, as in the published fine-tuning.
        stage, block = (int(parts[1]), int(parts[3])) if parts[2] == "blocks" else (int(parts[1]) + 1, 0)
        return sum(self.depths[:stage]) + block + 1

    def resize_loaded(self, state):
        own, resized = dict(self.named_parameters()), dict(state)
        for key, value in state.items():
            if key == TABLE:
                resized[key] = resize_square_table(value, self.absolute_pos_embed, self.grid)
            elif key.endswith("relative_position_bias_table") and key in own and value.shape[1:] == own[key].shape[1:]:
                resized[key] = resize_relative_table(value, self.layers[int(key.split(".")[1])].window)
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
