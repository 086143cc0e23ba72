"""MSG-Transformer: attention in windows, each with a messenger token; messengers of neighboring windows swap channels.

Paper: Fang et al., "MSG-Transformer: Exchanging Local Spatial Information by Manipulating Messenger Tokens", CVPR 2022,
arXiv 2105.15168 (version 3). Code: hustvl/MSG-Transformer (Apache-2.0), classification only.

Shapes: B batch, maps (B, H, W, C) of patches and (B, H/w, W/w, C) of messengers; in a stage R shuffle regions of all
images, each of G = S² windows, N = 1 + w² tokens of a window with the messenger in front, K label channels.

Kept from the published code: the swap happens between attention and MLP, on the residual stream; one convolution and
the norm after it merge both maps; every window slot of a region starts from a messenger of its own; stochastic depth
drops whole shuffle regions. The second column of ``rel_pos_msg``, added to all keys of a messenger alike, changes
nothing in a softmax and is not added.
Different: the published network runs at sizes that windows and regions divide in every stage (multiples of 224). Here
the stem's map is padded to the next such size with zeros, which take part like any token, and outputs are cropped;
where other regions than the published ones are asked for, a stage's maps are padded to what its own need. The image
embedding is the mean over the messengers whose windows meet the image; at the published size there is one. No dense
code is published: the maps are the un-normalized patches at the end of each stage. A messenger starts with the mean
label of its window, a swap leaves each messenger with the mean of its region; padding has no label, and what remains is
divided by the mass of labels that arrived.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.errors import UserError
from mixtransfer.layers.attention import attend_windows
from mixtransfer.layers.channels_last import pad
from mixtransfer.layers.eval_cache import EvalCache
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import pool_labels
from mixtransfer.layers.linear import Linear, Mlp
from mixtransfer.layers.patches import pad_to_multiple
from mixtransfer.layers.positions import relative_bias, relative_position_index, resize_relative_tables
from mixtransfer.layers.residual import residual, residual_with_labels
from mixtransfer.registry import MODELS

__all__ = ["MSGTransformer"]

README = "hustvl/MSG-Transformer, README (COCO: Cascade Mask R-CNN), of the network since December 2021; before: 80.9"
PATCH = 4


@dataclass(frozen=True)
class Spec:
    """One published size: channels of the first stage; blocks, heads and shuffle side of each stage; window side."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    shuffles: tuple[int, ...] = (4, 4, 2, 1)
    window: int = 7


def partition(x: Tensor, side: int, group: int) -> Tensor:
    """Cut a map (B, H, W, C) into regions of ``group``² windows of ``side``² tokens: (R, group², side², C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // (group * side), group, side, width // (group * side), group, side, channels)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, group**2, side**2, channels)


def unpartition(x: Tensor, size: tuple[int, int], side: int, group: int) -> Tensor:
    """Put windows (R, group², side², C) back into a map (B, H, W, C) of ``size``."""
    rows, columns = size[0] // (group * side), size[1] // (group * side)
    x = x.reshape(-1, rows, columns, group, group, side, side, x.size(-1))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, *size, x.size(-1))


class WindowAttention(nn.Module):
    """Attention inside windows with a messenger, and a learned bias for each relative position and for messengers."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(trunc_normal_(table, std=0.02))
        self.rel_pos_msg = nn.Parameter(trunc_normal_(torch.empty(heads, 2, 1, 1), std=0.02))
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.register_buffer("index", relative_position_index(window, window), persistent=False)
        self.eval_cache = EvalCache()

    def bias(self) -> Tensor:
        """Return the bias of each pair of a window, (1, h, N, N); kept in evaluation."""
        return self.eval_cache.get(self._bias, of=[self.relative_position_bias_table, self.rel_pos_msg])

    def _bias(self) -> Tensor:
        patches = relative_bias(self.relative_position_bias_table, self.index)
        messenger = self.rel_pos_msg[:, 0].expand(-1, len(self.index), -1)
        return F.pad(torch.cat([messenger, patches], dim=2), (0, 0, 1, 0)).unsqueeze(0)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (R, G, N, C) and the labels each of them attended to (R, G, N, K)."""
        q, k, v = self.qkv(x).flatten(0, 1).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out, attended = attend_windows(q, k, v, self.bias(), None if labels is None else labels.flatten(0, 1))
        out = self.proj(out.transpose(1, 2).reshape(x.shape))
        return out, None if labels is None else attended.view(labels.shape)


class Block(nn.Module):
    """Attention in windows, swap of the messengers' channels, MLP; the first and last with stochastic depth."""

    def __init__(self, channels: int, heads: int, window: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = drop_path

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (R, G, N, C) and their labels (R, G, N, K) or None."""
        x, labels = residual_with_labels(
            x, labels, lambda y, rows: self.attn(self.norm1(y), rows), self.drop_path, self.training
        )
        if labels is not None:
            labels[:, :, 0] = labels[:, :, 0].mean(dim=1, keepdim=True)
        windows = x.size(1)
        if windows > 1:
            # Chunk d of every messenger goes to window d. ``x`` is this block's own sum, so it may change in place.
            x[:, :, 0] = x[:, :, 0].unflatten(2, (windows, -1)).transpose(1, 2).flatten(2)
        return residual(x, lambda y: self.mlp(self.norm2(y)), self.drop_path, self.training), labels


class PatchMerging(nn.Module):
    """Both maps to half the sides and twice the channels, by the same strided convolution and norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduction = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged map (B, H/2, W/2, 2C)."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks, and the merging that follows them (not in the last stage)."""

    def __init__(self, channels: int, heads: int, window: int, shuffle: int, drop_paths: Sequence[float], merge: bool):
        super().__init__()
        self.window, self.shuffle = window, shuffle
        self.blocks = nn.ModuleList(Block(channels, heads, window, rate) for rate in drop_paths)
        self.downsample = PatchMerging(channels) if merge else None

    def fill(self, patches: Tensor, messengers: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps, padded with zeros to whole shuffle regions."""
        bottom, right = (-side % self.shuffle for side in messengers.shape[1:3])
        messengers = pad(messengers, bottom, right)
        bottom, right = (
            n * self.window - side for n, side in zip(messengers.shape[1:3], patches.shape[1:3], strict=True)
        )
        return pad(patches, bottom, right), messengers

    def cut(self, patches: Tensor, messengers: Tensor) -> Tensor:
        """Return the windows (R, G, N, C) of the two maps."""
        parts = partition(messengers, 1, self.shuffle), partition(patches, self.window, self.shuffle)
        return torch.cat(parts, dim=2)

    def join(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the maps of patches, of ``size``, and of messengers."""
        slots = size[0] // self.window, size[1] // self.window
        patches = unpartition(x[:, :, 1:], size, self.window, self.shuffle)
        return patches, unpartition(x[:, :, :1], slots, 1, self.shuffle)


class Stem(nn.Module):
    """The image to a map (B, ceil(H / 4), ceil(W / 4), C) by an overlapping convolution and a norm."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 7, stride=PATCH, padding=2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return the map."""
        return self.norm(self.proj(pad_to_multiple(images, PATCH)).permute(0, 2, 3, 1))


@MODELS.register_module()
class MSGTransformer(Backbone):
    """MSG-Transformer with outputs at strides 4, 8, 16 and 32.

    Args:
        window: window side, where it differs from the published one; tables are resampled when loading.
        shuffles: sides of the shuffle regions of the stages, in windows, where they differ from the published ones of
            classification, which keep apart what lies more than 224 pixels apart. The first fixes the number of
            messengers; the others change no parameter.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "msg_transformer"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("layers", -1, "blocks", -1)
    # Table 1 of the paper.
    archs = {
        "msg_transformer_tiny": Spec(64, (2, 4, 12, 4), (2, 4, 8, 16)),
        "msg_transformer_small": Spec(96, (2, 4, 12, 4), (3, 6, 12, 24)),
        "msg_transformer_base": Spec(96, (2, 4, 28, 4), (3, 6, 12, 24)),
    }
    reported = {
        "msg_transformer_tiny": Reported(25, 3.8, 82.4, 51.4, 44.6, sources=(README,)),
        "msg_transformer_small": Reported(56, 8.4, 83.4, 52.5, 45.5, sources=(README,)),
        "msg_transformer_base": Reported(84, 14.2, 84.0, 52.8, 45.7, sources=(README,)),
    }
    embed_only = (r"norm\..+",)
    official = KeyMap(derived=(r".*\.relative_position_index",))

    def outputs(self, spec):
        return pyramid([spec.channels * 2**i for i in range(len(spec.depths))])

    def build(self, spec: Spec, *, window: int | None = None, shuffles: Sequence[int] | None = None) -> None:
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        self.window, shuffles = window or spec.window, spec.shuffles if shuffles is None else shuffles
        if len(shuffles) != len(channels) or any(s < 1 or c % s**2 for s, c in zip(shuffles, channels, strict=False)):
            raise UserError(
                f"shuffles={tuple(shuffles)} of {self.arch}: give one side for each of {len(channels)} stages; its"
                f" square has to divide the channels, {', '.join(map(str, channels))}"
            )
        #: Sides of the stem's map that windows and regions divide in every stage are multiples of this.
        self.multiple = self.window * math.lcm(*(side * 2**i for i, side in enumerate(spec.shuffles)))
        self.patch_embed = Stem(self.in_channels, channels[0])
        messengers = torch.empty(1, shuffles[0] ** 2, 1, channels[0])
        self.msg_tokens = nn.Parameter(trunc_normal_(messengers, std=0.02))
        rates, last = iter(self.drop_path_rates()), len(channels) - 1
        sizes = zip(channels, spec.heads, shuffles, spec.depths, strict=True)
        self.layers = nn.ModuleList(
            Stage(width, heads, self.window, shuffle, [next(rates) for _ in range(depth)], merge=i < last)
            for i, (width, heads, shuffle, depth) in enumerate(sizes)
        )
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1])
        self.apply(init_linear)
        if last not in self.out_indices:
            # The last messenger reads no position, so without the last patches these get no gradient.
            attention = self.layers[-1].blocks[-1].attn
            attention.relative_position_bias_table.requires_grad_(False)
            attention.rel_pos_msg.requires_grad_(False)

    def run(self, images: Tensor, labels: Tensor | None, stages: int):
        """Yield (patches, messengers, patch labels, messenger labels) after each of the first ``stages`` stages.

        Maps are (B, H, W, C), cropped to the image; labels are (B, K, H, W) or None.
        """
        patches = self.patch_embed(images)
        size = patches.shape[1:3]
        bottom, right = (-side % self.multiple for side in size)
        patches = pad(patches, bottom, right)
        slots = [side // self.window for side in patches.shape[1:3]]
        side = self.layers[0].shuffle
        messengers = self.msg_tokens.view(1, side, side, -1)
        messengers = messengers.repeat(images.size(0), slots[0] // side, slots[1] // side, 1)
        rows = patch_labels = messenger_labels = None
        if labels is not None:
            labels = pool_labels(labels.detach(), size)
            # The last channel counts how much of a label is there: none in padding.
            labels = F.pad(torch.cat([labels, torch.ones_like(labels[:, :1])], dim=1), (0, right, 0, bottom))
            patch_labels, messenger_labels = labels, F.avg_pool2d(labels, self.window)
        for index, stage in enumerate(self.layers[:stages]):
            patches, messengers = stage.fill(patches, messengers)
            x, padded = stage.cut(patches, messengers), patches.shape[1:3]
            if labels is not None:
                rows = stage.cut(*stage.fill(*(part.permute(0, 2, 3, 1) for part in (patch_labels, messenger_labels))))
            for block in stage.blocks:
                x, rows = self.checkpointed(block, x, rows)
            patches, messengers = stage.join(x, padded)
            height, width = (-(-side // 2**index) for side in size)
            up, across = -(-height // self.window), -(-width // self.window)
            maps = patches[:, :height, :width], messengers[:, :up, :across]
            if labels is None:
                yield *maps, None, None
            else:
                patch_labels, messenger_labels = (part.permute(0, 3, 1, 2) for part in stage.join(rows, padded))
                whole = patch_labels[..., :height, :width], messenger_labels[..., :up, :across]
                yield *maps, *(part[:, :-1] / part[:, -1:] for part in whole)
            if index < stages - 1:
                patches, messengers = stage.downsample(patches), stage.downsample(messengers)
                if labels is not None:
                    pool = nn.AvgPool2d(2, ceil_mode=True)
                    patch_labels, messenger_labels = pool(patch_labels), pool(messenger_labels)

    def trunk(self, images, labels, count):
        for patches, _, rows, _ in self.run(images, labels, count):
            yield patches, rows

    def embedding(self, images, labels):
        *_, (patches, messengers, _, rows) = self.run(images, labels, len(self.layers))
        self.observe(patches, self.norm)
        return self.norm(messengers).mean(dim=(1, 2)), None if rows is None else rows.mean(dim=(2, 3))

    def stage_modules(self):
        return [[self.patch_embed, self.msg_tokens], *([stage] for stage in self.layers)]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] in ("patch_embed", "msg_tokens"):
            return 0
        if parts[0] != "layers":
            return self.depth + 1
        stage = int(parts[1])
        # Merging counts with the last block before it.
        block = int(parts[3]) if parts[2] == "blocks" else self.depths[stage] - 1
        return sum(self.depths[:stage]) + block + 1

    def no_weight_decay(self):
        ends = ("relative_position_bias_table", "rel_pos_msg")
        return {name for name, _ in self.named_parameters() if name.endswith(ends)}

    def resize_loaded(self, state):
        return resize_relative_tables(state, self, self.window)
