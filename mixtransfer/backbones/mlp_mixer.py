"""MLP-Mixer: one MLP over the positions of all patches, the same for every channel, and one over the channels.

Papers: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021, arXiv 2105.01601; Kang et al.,
"OAMixer: Object-aware Mixing Layer for Vision Transformers", CVPRW 2022, arXiv 2212.06595, which trains the sizes S and
B. Code: google-research/vision_transformer and alinlab/OAMixer (both Apache-2.0); the latter, and the names here, are
timm's. timm computes the same numbers for images of one size, so the network is written here.

Shapes: B batch, h × w a map's patches, N = P·Q positions that the token mixers are made for, C channels.

Kept from the published code: LayerNorm with eps 1e-6, stochastic depth the same in all blocks, the mean of the
normalized tokens as the image embedding; timm's initialization.
Different: any image size. Sides that a patch does not divide are padded. A map of another size than P × Q is resampled
to it (bilinear, averaging where it shrinks) for the token mixer alone, whose answer is resampled back: the residual
stream keeps its size. Loading the weights of another size folds these resamplings into them, so that the function stays
what it was. No dense code is published: the maps are the un-normalized tokens after the blocks of ``out_indices``.

Patch masks: ``Block.forward`` takes a ``gate`` on what positions take from each other, which
:mod:`mixtransfer.pretrain.oamixer` sets; published ``mask_scale`` entries are its own, the network without masks has
none. No attention: token labels are pooled to each output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.init import lecun_normal_
from mixtransfer.layers.linear import Mlp, gelu
from mixtransfer.layers.patches import PatchEmbed, grid_of
from mixtransfer.layers.residual import keep_mask, residual
from mixtransfer.layers.tables import table
from mixtransfer.registry import MODELS

__all__ = ["MLPMixer"]

TABLE = "arXiv 2105.01601, table 1"
QUOTED = "multiply-accumulates and top-1: arXiv 2105.01601 as quoted by microsoft/Swin-Transformer, README"
HEADLESS = "the paper leaves out the weights of the head"
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Spec:
    """One published size."""

    channels: int
    depth: int
    patch: int
    img_size: int = 224


@table
def resampling(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the (new, old) matrix that resamples a line: linear, over the area behind a pixel where it shrinks."""
    # Not as columns of width 1: there torch's antialiasing puts the first row's weights everywhere (2.14).
    lines = torch.eye(old, dtype=torch.float64).view(1, 1, old, old)
    matrix = F.interpolate(lines, size=(old, new), mode="bilinear", align_corners=False, antialias=True)
    return matrix[0, 0].t().contiguous().to(device, dtype)


def resample(x: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample the grid of tokens (B, h·w, C) from ``old`` to ``new``."""
    if old == new:
        return x
    batch, _, channels = x.shape
    with torch.autocast(x.device.type, enabled=False):
        x = resampling(old[0], new[0], x.device, x.dtype) @ x.reshape(batch, old[0], -1)
        x = resampling(old[1], new[1], x.device, x.dtype) @ x.view(batch, new[0], old[1], channels)
    return x.flatten(1, 2)


class TokenMixer(nn.Module):
    """MLP over the N positions of a grid P × Q, the same for every channel."""

    def __init__(self, grid: tuple[int, int], hidden: int):
        super().__init__()
        self.grid = grid
        positions = grid[0] * grid[1]
        self.fc1 = nn.Linear(positions, hidden)
        self.fc2 = nn.Linear(hidden, positions)

    def forward(self, x: Tensor, grid: tuple[int, int], gate: Tensor | None = None) -> Tensor:
        """Return the mixed tokens (B, h·w, C) of a map of size ``grid``.

        ``gate`` (B, N, N) multiplies what the linear part of the MLP, W = W₂W₁, carries from position j to i; what the
        activation adds to it is left as it is (OAMixer).
        """
        x = resample(x, grid, self.grid)
        out = _columns(gelu(_columns(x, self.fc1)), self.fc2)
        if gate is not None:
            out = torch.baddbmm(out, (gate - 1) * (self.fc2.weight @ self.fc1.weight), x.to(out.dtype))
        return resample(out, self.grid, grid)


def _columns(x: Tensor, layer: nn.Linear) -> Tensor:
    """Apply a linear layer to the columns of (B, in, C) without transposing them: (B, out, C)."""
    return torch.baddbmm(layer.bias[:, None], layer.weight.expand(x.size(0), -1, -1), x)


class Block(nn.Module):
    """x + token MLP(LN x), then x + channel MLP(LN x), each with stochastic depth."""

    def __init__(self, channels: int, grid: tuple[int, int], drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_tokens = TokenMixer(grid, channels // 2)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp_channels = Mlp(channels, 4 * channels)
        self.drop_path = drop_path

    def forward(self, x: Tensor, grid: tuple[int, int], gate: Tensor | None = None) -> Tensor:
        """Return tokens (B, h·w, C); ``gate`` is one of :class:`TokenMixer`."""
        if gate is None:
            x = residual(x, lambda y: self.mlp_tokens(self.norm1(y), grid), self.drop_path, self.training)
        else:
            # The gate has a row for every sample, so all of them are mixed.
            branch = self.mlp_tokens(self.norm1(x), grid, gate)
            if self.training and self.drop_path:
                branch = branch * keep_mask(len(x), self.drop_path, x)
            x = x + branch
        return residual(x, lambda y: self.mlp_channels(self.norm2(y)), self.drop_path, self.training)


@MODELS.register_module()
class MLPMixer(Backbone):
    """MLP-Mixer; outputs have the stride of a patch, a neck makes their pyramid.

    Args:
        img_size: side that the token mixers are made for; other maps are resampled to theirs.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "mlp_mixer"
    label_rule = "pooling"
    # Table 1 of the paper; OAMixer's own networks are the same ones.
    archs = {
        "mixer_s32": Spec(512, 8, 32),
        "mixer_s16": Spec(512, 8, 16),
        "mixer_b32": Spec(768, 12, 32),
        "mixer_b16": Spec(768, 12, 16),
        "mixer_l32": Spec(1024, 24, 32),
        "mixer_l16": Spec(1024, 24, 16),
        "mixer_h14": Spec(1280, 32, 14),
        "oamixer_mixer_s32": Spec(512, 8, 32),
        "oamixer_mixer_s16": Spec(512, 8, 16),
        "oamixer_mixer_b32": Spec(768, 12, 32),
        "oamixer_mixer_b16": Spec(768, 12, 16),
    }
    reported = {
        "mixer_s32": Reported(19, sources=(TABLE,)),
        "mixer_s16": Reported(18, sources=(TABLE,), reason=HEADLESS),
        "mixer_b32": Reported(60, sources=(TABLE,)),
        "mixer_b16": Reported(59, 12.7, 76.4, sources=(TABLE, QUOTED), reason=HEADLESS),
        "mixer_l32": Reported(206, sources=(TABLE,)),
        "mixer_l16": Reported(207, sources=(TABLE,)),
        "mixer_h14": Reported(431, sources=(TABLE,)),
    }
    embed_only = (r"norm\..+",)

    # OAMixer's masks, which a network without them has no use for.
    official = KeyMap(derived=(r"blocks\.\d+\.mlp_tokens\.mask_scale",))

    def outputs(self, spec):
        return [(spec.channels, spec.patch)] * spec.depth

    def build(self, spec: Spec, *, img_size: tuple[int, int]) -> None:
        grid = grid_of(img_size, spec.patch)
        self.stem = PatchEmbed(self.in_channels, spec.channels, spec.patch)
        self.blocks = nn.ModuleList(Block(spec.channels, grid, self.drop_path_rate) for _ in range(spec.depth))
        if self.with_embedding:
            self.norm = nn.LayerNorm(spec.channels, eps=NORM_EPS)
        self.apply(_init)

    def trunk(self, images, labels, count):
        x, grid = self.stem(images)
        for block in self.blocks[:count]:
            x = self.checkpointed(block, x, grid)
            yield x.unflatten(1, grid), None

    def stage_modules(self):
        return [[self.stem], *([block] for block in self.blocks)]

    def layer_of(self, name):
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith("stem.") else self.depth + 1

    def resize_loaded(self, state):
        resized = dict(state)
        for index, block in enumerate(self.blocks):
            mixer = block.mlp_tokens
            for name in ("fc1.weight", "fc2.weight", "fc2.bias"):
                key = f"blocks.{index}.mlp_tokens.{name}"
                value, own = state.get(key), mixer.get_parameter(name)
                if value is not None and value.shape != own.shape and value.dim() == own.dim():
                    resized[key] = resize_token_mixer(value, name, mixer.grid)
        return resized


def resize_token_mixer(value: Tensor, name: str, grid: tuple[int, int]) -> Tensor:
    """Fold the resampling of a map of size ``grid`` into a token mixer's weight or bias, made for a square grid."""
    rows = value.t() if name == "fc2.weight" else value.reshape(-1, value.size(-1))
    side = math.isqrt(rows.size(1))
    if side * side != rows.size(1):
        return value
    old, new = (side, side), grid
    # fc1 reads the map resampled to its grid; the answer of fc2 is resampled to the map.
    ends = (new, old) if name == "fc1.weight" else (old, new)
    y, x = (resampling(a, b, value.device, torch.float64) for a, b in zip(*ends, strict=True))
    rows = rows.double().unflatten(1, old)
    sums = "opq,ph,qw->ohw" if name == "fc1.weight" else "opq,hp,wq->ohw"
    rows = torch.einsum(sums, rows, y, x).flatten(1).to(value.dtype)
    return {"fc1.weight": rows, "fc2.weight": rows.t().contiguous(), "fc2.bias": rows[0]}[name]


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(module.bias, std=1e-6)
    elif isinstance(module, nn.Conv2d):
        lecun_normal_(module.weight)
        nn.init.zeros_(module.bias)
