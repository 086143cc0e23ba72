"""RegionViT: coarse regional tokens attend to each other, then each to the fine local tokens of its window.

Paper: Chen, Panda, Fan, "RegionViT: Regional-to-Local Attention for Vision Transformers", ICLR 2022, arXiv 2106.02689.
Code: IBM/RegionViT (Apache-2.0), detection included.

Shapes: B batch, R = h·w regional tokens, one for each window of w² local tokens, N = 1 + w² tokens of a window with its
regional token in front, C channels, K label channels. Maps between layers are (B, H, W, C).

Kept from the published code: regional tokens come from the image padded around its center, windows start at the top
left corner; where windows are padded, pairs of valid and padded tokens are masked in the windows of the last row and
column, but in the corner window only where both axes forbid the pair; padded tokens that nothing is left for attend to
the whole window evenly; regions in the padding take part; stochastic depth drops the local branches window by window;
in dense networks the normalized local map is both the output of a stage and the input of the next. The stem of the
medium and base sizes floors: their first map has floor((H + 2) / 4) rows.
Different: windows are cut by views instead of unfolding, masks depend on sizes only and are kept; a window size is
changed with the position table un-rotated (the published tool resizes it rotated). A token of a padded window has no
label of its own; labels mixed in a window are divided by the mass of labels that a token found. A region starts with
the labels of its cell of the image, without the shift by the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import attend, attend_windows, mix_labels
from mixtransfer.layers.channels_last import Conv, pad
from mixtransfer.layers.compiling import constant_in_graphs
from mixtransfer.layers.eval_cache import EvalCache
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, pool_labels
from mixtransfer.layers.linear import Linear, Mlp
from mixtransfer.layers.positions import resize_relative_table
from mixtransfer.layers.residual import keep_mask, residual, residual_with_labels
from mixtransfer.layers.tables import table
from mixtransfer.registry import MODELS

__all__ = ["RegionViT"]

README = "IBM/RegionViT, README (COCO: Mask R-CNN, 36 epochs)"
FPN = "ADE20K, Semantic FPN: arXiv 2106.02689 as quoted by arXiv 2309.11523"
PATCH, HEAD = 4, 32
NORM_EPS, MAP_NORM_EPS = 1e-6, 1e-5


@dataclass(frozen=True)
class Spec:
    """One published size: channels of the first stage, blocks of each, convolutions of the stem, window, position conv.

    Attributes:
        peg: add a depthwise convolution of both maps after the first block of each stage.
    """

    channels: int
    depths: tuple[int, ...] = (2, 2, 8, 2)
    stem: int = 3
    window: int = 7
    peg: bool = False


@dataclass(frozen=True)
class Regions:
    """The windows of a local map (H, W) under a map of regions (h, w), and what they may attend to."""

    size: tuple[int, int]
    grid: tuple[int, int]
    window: int
    device: torch.device

    @property
    def count(self) -> int:
        """Number R of windows of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def mask(self) -> Tensor | None:
        """(R, 1, N, N) 0 or −inf, None where nothing is padded."""
        return _masks(*self.size, *self.grid, self.window, self.device)[0]

    @property
    def idle(self) -> Tensor | None:
        """(R, 1, N, 1) True for tokens that may attend to nothing; their rows of the mask are 0."""
        return _masks(*self.size, *self.grid, self.window, self.device)[1]

    def cut(self, local: Tensor, regional: Tensor) -> Tensor:
        """Return the windows (B·R, 1+w², C) of a local map (B, H, W, C), zero-padded, with their regions in front."""
        (height, width), (h, w), side = self.size, self.grid, self.window
        local = pad(local, h * side - height, w * side - width)
        local = local.view(-1, h, side, w, side, local.size(3)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        return torch.cat([regional.flatten(0, 2).unsqueeze(1), local], dim=1)

    def join(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the local map (B, H, W, C) and the regional map (B, h, w, C) of windows."""
        h, w, side = *self.grid, self.window
        local = tokens[:, 1:].reshape(-1, h, w, side, side, tokens.size(2)).transpose(2, 3)
        local = local.reshape(-1, h * side, w * side, tokens.size(2))[:, : self.size[0], : self.size[1]]
        return local, tokens[:, 0].view(-1, h, w, tokens.size(2))


# A compiled graph takes the masks as constants; it cannot trace a cache, and would make them at every step.
@constant_in_graphs
def _masks(height: int, width: int, h: int, w: int, window: int, device: torch.device):
    return _make_masks(height, width, h, w, window, device)


@table
def _make_masks(height: int, width: int, h: int, w: int, window: int, device: torch.device):
    bottom, right = h * window - height, w * window - width
    if not bottom and not right:
        return None, None
    inner = torch.arange(window, device=device)

    def pairs(valid: Tensor) -> Tensor:
        valid = F.pad(valid.flatten(), (1, 0), value=True)
        return valid[:, None] & valid[None, :]

    rows = pairs((inner < window - bottom)[:, None].expand(-1, window))
    columns = pairs((inner < window - right)[None, :].expand(window, -1))
    allowed = torch.ones(h, w, *rows.shape, dtype=torch.bool, device=device)
    allowed[-1], allowed[:, -1] = rows, columns
    allowed[-1, -1] = rows | columns
    allowed = allowed.flatten(0, 1).unsqueeze(1)
    idle = ~allowed.any(dim=-1, keepdim=True)
    return torch.zeros(allowed.shape, device=device).masked_fill_(~(allowed | idle), -torch.inf), idle


class MapNorm(nn.Module):
    """LayerNorm over the channels of a map (B, H, W, C), its parameters shaped as published."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized map."""
        return F.layer_norm(x, x.shape[-1:], self.weight.flatten(), self.bias.flatten(), MAP_NORM_EPS)


class Stem(nn.Module):
    """The image (B, H, W, 3) to local tokens of 4 × 4 pixels by three small convolutions or one large one."""

    def __init__(self, in_channels: int, channels: int, convs: int):
        super().__init__()
        self.smallest = 1
        if convs == 1:
            self.proj = Conv(in_channels, channels, 8, stride=PATCH, padding=3)
            self.smallest = 2
            return
        self.proj = nn.Sequential(
            Conv(in_channels, channels // 4, 3, stride=2, padding=1),
            MapNorm(channels // 4),
            nn.GELU(),
            Conv(channels // 4, channels // 2, 3, stride=2, padding=1),
            MapNorm(channels // 2),
            nn.GELU(),
            Conv(channels // 2, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the local map; a side too small for the convolution is padded."""
        bottom, right = (max(self.smallest - side, 0) for side in x.shape[1:3])
        return self.proj(F.pad(x, (0, 0, 0, right, 0, bottom)))


class RegionStem(nn.Module):
    """The image (B, H, W, 3), padded on all sides to whole regions, to regional tokens."""

    def __init__(self, in_channels: int, channels: int, region: int):
        super().__init__()
        self.region = region
        self.proj = Conv(in_channels, channels, region, stride=region)

    def forward(self, x: Tensor) -> Tensor:
        """Return the regional map (B, h, w, C)."""
        k = self.region
        if x.size(1) % k or x.size(2) % k:
            # Once a side needs padding the other gets it too, a whole region where it needs none.
            top, left = ((k - side % k) // 2 for side in x.shape[1:3])
            bottom, right = k - x.size(1) % k - top, k - x.size(2) % k - left
            x = F.pad(x, (0, 0, left, right, top, bottom))
        return self.proj(x)


class Projection(nn.Module):
    """Both maps to half the sides and twice the channels by the same layers; the first stage keeps them."""

    def __init__(self, channels: int):
        super().__init__()
        conv = Conv(channels, 2 * channels, 3, stride=2, padding=1, groups=channels)
        self.proj = nn.Sequential(MapNorm(channels), nn.GELU(), conv)
        # The published state dicts name the same tensors twice.
        self.proj_cls = self.proj

    def forward(self, local: Tensor, regional: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected maps."""
        return self.proj(local), self.proj_cls(regional)


class Attention(nn.Module):
    """One attention for two uses: among all regions, and inside each window with its region."""

    def __init__(self, channels: int, window: int):
        super().__init__()
        self.heads, self.side = channels // HEAD, 2 * window - 1
        self.rel_pos = nn.Parameter(trunc_normal_(torch.empty(self.heads, self.side**2), std=0.02))
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.register_buffer("index", rotated_index(window), persistent=False)
        self.eval_cache = EvalCache()

    def bias(self, regions: Regions) -> Tensor:
        """Return the bias of each pair of a window with its mask, (1 or R, h, N, N); kept in evaluation."""
        return self.eval_cache.get(self._bias, regions, of=[self.rel_pos])

    def _bias(self, regions: Regions) -> Tensor:
        # The regional token has no position: its row and column are 0.
        bias = F.pad(self.rel_pos[:, self.index.flatten()].unflatten(1, self.index.shape), (1, 0, 1, 0)).unsqueeze(0)
        mask = regions.mask
        return bias if mask is None else bias.masked_fill(regions.idle, 0) + mask.to(bias.dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of tokens (B, N, C), each (B, h, N, d)."""
        return self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def regional(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new regional tokens (B, R, C) and the labels each of them attended to (B, R, K)."""
        out, attended = attend(*self.project(x), labels)
        return self.proj(out.transpose(1, 2).flatten(2)), attended

    def local(self, x: Tensor, regions: Regions, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens of windows (B·R, N, C) and the labels each of them attended to (B·R, N, K)."""
        q, k, v = self.project(x)
        idle = regions.idle
        if idle is not None:
            # Zero queries attend evenly, and pass no gradient on, as the published constant logits.
            q = q.unflatten(0, (-1, regions.count)).masked_fill(idle, 0).flatten(0, 1)
        out, attended = attend_windows(q, k, v, self.bias(regions), labels)
        return self.proj(out.transpose(1, 2).flatten(2)), attended


class Block(nn.Module):
    """Attention among regions, attention inside windows with the same weights, MLP on all tokens."""

    def __init__(self, channels: int, window: int, drop_path: float):
        super().__init__()
        self.norm0 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = Attention(channels, window)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = drop_path

    def forward(self, x: Tensor, regions: Regions, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of windows (B·R, N, C) and their labels (B·R, N, K) or None."""
        first = x[:, 0].unflatten(0, (-1, regions.count))
        known = None if labels is None else labels[:, 0].unflatten(0, (-1, regions.count))
        first, known = residual_with_labels(
            first, known, lambda y, rows: self.attn.regional(self.norm0(y), rows), self.drop_path, self.training
        )
        x = _replace_first(x, first)
        labels = None if known is None else _replace_first(labels, known)
        # Windows differ in their masks, so attention runs for those that drop it as well.
        branch, attended = self.attn.local(self.norm1(x), regions, labels)
        dropping = self.training and self.drop_path
        x = x + (branch * keep_mask(len(x), self.drop_path, x) if dropping else branch)
        labels = None if labels is None else mix_labels(labels, attended)
        return residual(x, lambda y: self.mlp(self.norm2(y)), self.drop_path, self.training), labels


class Stage(nn.Module):
    """Projection of both maps, then blocks; ``block`` holds both, as published."""

    def __init__(self, channels: int, window: int, drop_paths: Sequence[float], project: bool, peg: bool):
        super().__init__()
        self.window = window
        blocks = (Block(channels, window, rate) for rate in drop_paths)
        self.block = nn.ModuleList([Projection(channels // 2) if project else nn.Identity(), *blocks])
        self.peg = Conv(channels, channels, 3, padding=1, groups=channels, bias=False) if peg else None


@MODELS.register_module()
class RegionViT(Backbone):
    """RegionViT with outputs at strides 4, 8, 16 and 32: the normalized local maps of its stages.

    Args:
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "regionvit"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("layers", -1, "block", -1)
    # Table 2 of the paper; those with windows of 14 and with the position convolution are the detectors'.
    archs = {
        "regionvit_tiny": Spec(64),
        "regionvit_small": Spec(96),
        "regionvit_small_w14": Spec(96, window=14),
        "regionvit_small_w14_peg": Spec(96, window=14, peg=True),
        "regionvit_medium": Spec(96, (2, 2, 14, 2), stem=1),
        "regionvit_base": Spec(128, (2, 2, 14, 2), stem=1),
        "regionvit_base_w14": Spec(128, (2, 2, 14, 2), stem=1, window=14),
        "regionvit_base_w14_peg": Spec(128, (2, 2, 14, 2), stem=1, window=14, peg=True),
    }
    reported = {
        "regionvit_tiny": Reported(13.8, 2.4, 80.4, sources=(README,)),
        "regionvit_small": Reported(30.6, 5.3, 82.6, 46.3, 42.3, sources=(README,)),
        "regionvit_small_w14": Reported(None, None, None, 47.3, 43.4, 45.3, (README, FPN)),
        "regionvit_small_w14_peg": Reported(None, None, None, 47.6, 43.4, sources=(README,)),
        "regionvit_medium": Reported(41.2, 7.4, 83.1, sources=(README,)),
        "regionvit_base": Reported(72.7, 13.0, 83.2, 47.2, 43.0, sources=(README,)),
        "regionvit_base_w14": Reported(None, None, None, 48.1, 43.5, 47.5, (README, FPN)),
        "regionvit_base_w14_peg": Reported(None, None, None, 48.3, 43.5, sources=(README,)),
    }
    dense_only = (r"norm\d\..+",)
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid([spec.channels * 2**i for i in range(len(spec.depths))])

    def build(self, spec: Spec) -> None:
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        self.window = spec.window
        self.patch_embed = Stem(self.in_channels, channels[0], spec.stem)
        self.cls_token = RegionStem(self.in_channels, channels[0], PATCH * spec.window)
        rates = iter(self.drop_path_rates())
        self.layers = nn.ModuleList(
            Stage(channels[i], spec.window, [next(rates) for _ in range(n)], project=i > 0, peg=spec.peg)
            for i, n in enumerate(spec.depths)
        )
        for index in range(max(self.out_indices, default=-1) + 1):
            self.add_module(f"norm{index}", MapNorm(channels[index]))
        if spec.peg:
            # Detectors add the position convolution to a network that was pretrained without it.
            self.dense_only = (*self.dense_only, r"layers\.\d\.peg\.weight")
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1], eps=NORM_EPS)
        self.apply(init_linear)
        if len(self.layers) - 1 not in self.out_indices:
            # Without the last local map the last positions are read by no output, so they get no gradient.
            self.layers[-1].block[-1].attn.rel_pos.requires_grad_(False)

    def run(self, images: Tensor, labels: Tensor | None, stages: int, norm: bool):
        """Yield (local map, regional map, local labels, regional labels) after each of the first ``stages`` stages.

        Maps are (B, H, W, C), labels (B, H, W, K) or None; ``norm`` normalizes local maps as dense networks do.
        """
        images = images.permute(0, 2, 3, 1)
        local, regional, rows = self.patch_embed(images), self.cls_token(images), None
        if labels is not None:
            labels = labels.detach()
            # The last channel counts how much of a label is there: none in padding.
            labels = torch.cat([labels, torch.ones_like(labels[:, :1])], dim=1)
            local_labels, regional_labels = labels, labels
        for index, stage in enumerate(self.layers[:stages]):
            if index:
                local, regional = stage.block[0](local, regional)
            regions = Regions(tuple(local.shape[1:3]), tuple(regional.shape[1:3]), stage.window, local.device)
            x = regions.cut(local, regional)
            if labels is not None:
                local_labels = pool_labels(local_labels, regions.size).permute(0, 2, 3, 1)
                regional_labels = pool_labels(regional_labels, regions.grid).permute(0, 2, 3, 1)
                rows = regions.cut(local_labels, regional_labels)
            for number, block in enumerate(stage.block[1:]):
                x, rows = self.checkpointed(block, x, regions, rows)
                if number == 0 and stage.peg is not None:
                    local, regional = regions.join(x)
                    x = regions.cut(local + stage.peg(local), regional + stage.peg(regional))
            local, regional = regions.join(x)
            if norm:
                local = getattr(self, f"norm{index}")(local)
            if labels is None:
                yield local, regional, None, None
            else:
                local_labels, regional_labels = (_whole(part).permute(0, 3, 1, 2) for part in regions.join(rows))
                yield local, regional, local_labels[:, :-1], regional_labels[:, :-1]

    def trunk(self, images, labels, count):
        for local, _, rows, _ in self.run(images, labels, count, norm=True):
            yield local, rows

    def embedding(self, images, labels):
        *_, (local, regional, _, rows) = self.run(images, labels, len(self.layers), norm=False)
        self.observe(local, self.norm)
        return self.norm(regional.flatten(1, 2)).mean(dim=1), None if rows is None else image_label(rows)

    def stage_modules(self):
        normed = max(self.out_indices, default=-1) + 1
        norms = [[getattr(self, f"norm{i}")] if i < normed else [] for i in range(len(self.layers))]
        stages = [[stage, *norm] for stage, norm in zip(self.layers, norms, strict=True)]
        return [[self.patch_embed, self.cls_token], *stages]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] in ("patch_embed", "cls_token"):
            return 0
        if parts[0] == "layers":
            # The projection and the position convolution count with the stage's first block.
            block = int(parts[3]) if parts[2] == "block" else 1
            return sum(self.depths[: int(parts[1])]) + max(block, 1)
        if parts[0] in {f"norm{i}" for i in range(len(self.depths))}:
            return sum(self.depths[: int(parts[0][-1]) + 1])
        return self.depth + 1

    def resize_loaded(self, state):
        own, resized = dict(self.named_parameters()), dict(state)
        for key, value in state.items():
            if key not in own or value.shape == own[key].shape:
                continue
            if key.endswith("rel_pos") and len(value) == len(own[key]):
                resized[key] = resize_rotated_table(value, self.window)
            elif key == "cls_token.proj.weight":
                resized[key] = F.interpolate(value, size=own[key].shape[2:], mode="bicubic", align_corners=False)
        return resized


def rotated_index(window: int) -> Tensor:
    """Return the entry of the position table for each pair of local tokens of a window, (w², w²).

    An offset o = key − query is stored at (o + w // 2) mod (2w − 1), on either axis.
    """
    side = 2 * window - 1
    offsets = (torch.arange(window)[None, :] - torch.arange(window)[:, None] + window // 2) % side
    rows, columns = offsets[:, None, :, None], offsets[None, :, None, :]
    return (rows * side + columns).reshape(window**2, window**2)


def resize_rotated_table(table: Tensor, window: int) -> Tensor:
    """Resample a position table (h, (2w₀−1)²) to windows of ``window``, neighboring offsets next to each other."""

    def roll(table: Tensor, sign: int) -> Tensor:
        side = int(table.size(1) ** 0.5)
        old = (side + 1) // 2
        shift = sign * (old - 1 - old // 2)
        return table.unflatten(1, (side, side)).roll((shift, shift), (1, 2)).flatten(1)

    return roll(resize_relative_table(roll(table, 1).t(), window).t(), -1)


def _replace_first(windows: Tensor, first: Tensor) -> Tensor:
    """Return windows (B·R, N, C) with their first tokens replaced by ``first`` (B, R, C)."""
    return torch.cat([first.flatten(0, 1).unsqueeze(1), windows[:, 1:]], dim=1)


def _whole(labels: Tensor) -> Tensor:
    """Return labels (…, K+1) divided by their last channel, which counts how much of them is there."""
    return labels / labels[..., -1:]
