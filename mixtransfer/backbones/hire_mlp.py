"""Hire-MLP: a pyramid of 1 × 1 convolutions that mix neighboring rows and columns after regrouping them as channels.

Paper: Guo et al., "Hire-MLP: Vision MLP via Hierarchical Rearrangement", CVPR 2022, arXiv 2108.13341. Code:
ggjy/Hire-Wave-MLP.pytorch (MIT; its mmseg folder Apache-2.0). No installed library ships the network.

Shapes: B batch, C channels, H × W a stage's map, p rows of a region, n = ceil(H / p) regions, s the cross-region step.

Kept from the published code: the circular padding up to whole regions takes rows of the map that is already shifted;
the weights of the three branches lie channel-major, (C, 3); BatchNorm everywhere, over the whole batch also under
stochastic depth; the patch embedding floors, to (H + 1) // 4 rows, later stages ceil.
Different: shift, padding and regrouping are one gather, so that maps lower than a step or a region work too (rows are
taken modulo H, where the published padding stops); images lower than 3 pixels are padded to 3.

No attention: token labels are pooled to each output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, check_out_indices
from mixtransfer.layers.drop_path import drop_path_rates, keep_mask
from mixtransfer.layers.labels import image_label, pool_labels
from mixtransfer.registry import MODELS

__all__ = ["HireMLP"]

PIXELS = (4, 3, 3, 2)
STEP_STRIDES = (2, 2, 3, 2)
STEP_DILATIONS = (2, 2, 1, 1)
MIN_SIDE = 3


@dataclass(frozen=True)
class Spec:
    """One published size: blocks and channels of each stage."""

    depths: tuple[int, ...]
    channels: tuple[int, ...]


# Tables made in inference mode could not be used in training.
@lru_cache(maxsize=256)
@torch.inference_mode(False)
def region_rows(height: int, pixel: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where regrouped rows come from and where a map's rows are found among them.

    A map of H rows is shifted down by ``step``, padded at the bottom with its own first rows to n·p rows, and row
    p·i + j is put at place j·n + i. Returns the source of each place, (n·p,), and the place of each row, (H,).
    """
    regions = -(-height // pixel)
    place = torch.arange(regions * pixel, device=device)
    source = (place % regions * pixel + place // regions - step) % height
    shifted = (torch.arange(height, device=device) + step) % height
    return source, shifted % pixel * regions + shifted // pixel


class HireMixer(nn.Module):
    """Sum of a row, a column and a channel branch, weighted for each image and channel, then a projection."""

    def __init__(self, channels: int, pixel: int, step: int):
        super().__init__()
        self.pixel, self.step = pixel, step
        half, wide = channels // 2, channels * pixel
        self.mlp_h1 = nn.Conv2d(wide, half, 1, bias=False)
        self.mlp_h1_norm = nn.BatchNorm2d(half)
        self.mlp_h2 = nn.Conv2d(half, wide, 1)
        self.mlp_w1 = nn.Conv2d(wide, half, 1, bias=False)
        self.mlp_w1_norm = nn.BatchNorm2d(half)
        self.mlp_w2 = nn.Conv2d(half, wide, 1)
        self.mlp_c = nn.Conv2d(channels, channels, 1)
        self.reweight = Mlp(channels, channels // 4, 3 * channels, use_conv=True)
        self.proj = nn.Conv2d(channels, channels, 1)

    def mix_rows(self, x: Tensor, first: nn.Module, norm: nn.Module, second: nn.Module) -> Tensor:
        """Mix the p rows of each region of (B, C, H, W) with all channels; same shape."""
        batch, channels, height, width = x.shape
        source, place = region_rows(height, self.pixel, self.step, x.device)
        x = x.index_select(2, source).reshape(batch, channels * self.pixel, -1, width)
        x = second(F.relu(norm(first(x))))
        return x.reshape(batch, channels, -1, width).index_select(2, place)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map (B, C, H, W)."""
        rows = self.mix_rows(x, self.mlp_h1, self.mlp_h1_norm, self.mlp_h2)
        columns = self.mix_rows(x.transpose(2, 3), self.mlp_w1, self.mlp_w1_norm, self.mlp_w2).transpose(2, 3)
        own = self.mlp_c(x)
        mean = sum(branch.mean(dim=(2, 3), keepdim=True) for branch in (rows, columns, own))
        shares = self.reweight(mean).unflatten(1, (-1, 3)).softmax(dim=2)
        return self.proj(rows * shares[:, :, 0] + columns * shares[:, :, 1] + own * shares[:, :, 2])


class Block(nn.Module):
    """x + mixer(BN x), then x + MLP(BN x), each with stochastic depth."""

    def __init__(self, channels: int, pixel: int, step: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.attn = HireMixer(channels, pixel, step)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = Mlp(channels, 4 * channels, use_conv=True)
        self.drop_path = drop_path

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        # Every sample's branch is computed, dropped or not: BatchNorm's statistics are those of the whole batch.
        return x + branch * keep_mask(len(x), self.drop_path, x) if self.training and self.drop_path else x + branch

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape (B, C, H, W)."""
        x = self.add(x, self.attn(self.norm1(x)))
        return self.add(x, self.mlp(self.norm2(x)))


class ConvEmbed(nn.Module):
    """Strided convolution, BatchNorm, ReLU: the patch embedding and what opens each later stage."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, padding)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        return F.relu(self.norm(self.proj(x)))


@MODELS.register_module()
class HireMLP(Backbone):
    """Hire-MLP with outputs at strides 4, 8, 16 and 32, each with a BatchNorm of its own.

    Args:
        arch: one of ``archs``.
        in_channels: channels of the images.
        out_indices: stages (0 to 3) whose maps are returned.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        frozen_stages: −1 freezes nothing, 0 the patch embedding, n also the first n stages.
        with_cp: recompute activations in the backward pass.
        with_embedding: keep the last norm, which only ``embed`` reads.
        token_classifier: arguments of :class:`~mixtransfer.backbones.base.TokenClassifier`, or None.
        init_cfg: OpenMMLab initialization, e.g. ``dict(type="mixtransfer.Pretrained", checkpoint=...)``.
    """

    family = "hire_mlp"
    label_rule = "pooling"
    # Table 1 of the paper; parameters of the classifiers 18.0, 33.1, 58.2 and 95.7 million.
    archs = {
        "hire_mlp_tiny": Spec((2, 2, 4, 2), (64, 128, 320, 512)),
        "hire_mlp_small": Spec((3, 4, 10, 3), (64, 128, 320, 512)),
        "hire_mlp_base": Spec((4, 6, 24, 3), (64, 128, 320, 512)),
        "hire_mlp_large": Spec((4, 6, 24, 3), (96, 192, 384, 768)),
    }
    # Numbered by the position in `network`, as published.
    dense_only = (r"norm[0246]\..+",)
    embed_only = (r"norm\..+",)

    def __init__(
        self,
        arch: str = "hire_mlp_small",
        *,
        in_channels: int = 3,
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
        self.depths, self.depth = spec.depths, sum(spec.depths)
        self.out_indices = check_out_indices(out_indices, len(spec.depths), arch)
        self.embed_channels = spec.channels[-1]

        self.patch_embed = ConvEmbed(in_channels, spec.channels[0], 7, 4, 2)
        rates = iter(drop_path_rates(drop_path_rate, self.depth))
        self.network = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(spec.channels, spec.depths, strict=True)):
            if stage:
                self.network.append(ConvEmbed(spec.channels[stage - 1], channels, 3, 2, 1))
            steps = [index % STEP_STRIDES[stage] * STEP_DILATIONS[stage] for index in range(depth)]
            self.network.append(nn.Sequential(*(Block(channels, PIXELS[stage], step, next(rates)) for step in steps)))
        for index in self.out_indices:
            self.add_module(f"norm{2 * index}", nn.BatchNorm2d(spec.channels[index]))
        if with_embedding:
            self.norm = nn.BatchNorm2d(spec.channels[-1])
        self.apply(_init)
        self.finish(
            [spec.channels[i] for i in self.out_indices],
            [4 * 2**i for i in self.out_indices],
            frozen_stages=frozen_stages,
            token_classifier=token_classifier,
        )

    def stages(self, images: Tensor, count: int):
        """Yield the map (B, C_i, H_i, W_i) of each of the first ``count`` stages."""
        short = [max(MIN_SIDE - side, 0) for side in images.shape[2:]]
        x = self.patch_embed(F.pad(images, (0, short[1], 0, short[0])) if any(short) else images)
        for position, part in enumerate(self.network[: max(2 * count - 1, 0)]):
            if position % 2:
                x = part(x)
                continue
            for block in part:
                x = self.checkpointed(block, x)
            yield x

    def dense(self, images, labels):  # noqa: D102
        stages = enumerate(self.stages(images, max(self.out_indices, default=-1) + 1))
        maps = tuple(getattr(self, f"norm{2 * i}")(x) for i, x in stages if i in self.out_indices)
        return maps, None

    def embedding(self, images, labels):  # noqa: D102
        *_, x = self.stages(images, len(self.depths))
        label = None if labels is None else image_label(pool_labels(labels, x.shape[2:]))
        return self.norm(x).mean(dim=(2, 3)), label

    def stage_modules(self):  # noqa: D102
        parts = [[self.patch_embed]]
        for stage in range(len(self.depths)):
            # A stage starts with the convolution that makes its map.
            modules = list(self.network[max(2 * stage - 1, 0) : 2 * stage + 1])
            parts.append(modules + ([getattr(self, f"norm{2 * stage}")] if stage in self.out_indices else []))
        return parts

    def layer_of(self, name):  # noqa: D102
        parts = name.split(".")
        if parts[0] != "network":
            return 0 if parts[0] == "patch_embed" else self.depth + 1
        stage, opens = (int(parts[1]) + 1) // 2, int(parts[1]) % 2
        return sum(self.depths[:stage]) + (0 if opens else int(parts[2])) + 1


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
