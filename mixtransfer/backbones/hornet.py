"""HorNet: a ConvNeXt-like network that mixes tokens by recursive gated convolution (gnConv).

Paper: Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", NeurIPS 2022,
arXiv 2207.14284. Code: raoyongming/HorNet (MIT). mmpretrain's HorNet computes the same numbers; it normalizes channels
in Python and its 384-pixel filters have wrong sizes, so the network is written here, channels last throughout.

Shapes: B batch, (H, W) the map of a stage, C its channels; maps are (B, H, W, C) inside. A gnConv of order n splits
into n parts of d_i = C / 2^(n−1−i) channels, D = Σ d_i = 2C − d_0.

Kept from the published code: sides are floored at each step, what the strides do not reach at the right and bottom is
not seen; dense maps have a LayerNorm each, the classifier averages first and normalizes then; the "gf" filter is
resampled to each map (bilinear, corners aligned), and once when a checkpoint has another size.
Different: float64 stays float64 in the Fourier transform (lower precision is raised to float32); the factor 1/3 is
folded into the depthwise weights; a side shorter than a stride is padded to it with zeros.
Token labels are pooled to each output grid: no attention moves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, pyramid
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.channels_last import Conv, Patches, Pointwise
from mixtransfer.layers.cpu import in_chunks
from mixtransfer.layers.depthwise import Depthwise, depthwise
from mixtransfer.layers.eval_cache import EvalCache
from mixtransfer.layers.init import trunc_normal_
from mixtransfer.layers.linear import Linear, gelu, linear
from mixtransfer.layers.residual import residual
from mixtransfer.registry import MODELS

__all__ = ["HorNet"]

README = "raoyongming/HorNet, README"
DENSE = "raoyongming/HorNet, dense READMEs (COCO: Cascade Mask R-CNN, 36 epochs; ADE20K: UPerNet, 160k iterations)"
IN22K = "dense ones pre-trained on ImageNet-22k, ADE20K at 640 × 640"
HEAD_22K = "the published file is that of ImageNet-22k, whose head is larger"
NORM_EPS = 1e-6
SCALE = 1 / 3  # of the gates, section 3.1: keeps their recursive product from growing
STRIDES = (4, 8, 16, 32)
ORDERS = (2, 3, 4, 5)


@dataclass(frozen=True)
class Spec:
    """One published size: channels of the first stage, and whether stages 3 and 4 mix globally ("gf")."""

    channels: int
    global_filter: bool = False
    img_size: int = 224
    depths: tuple[int, ...] = (2, 3, 18, 2)


def resize_filter(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a complex filter (C, h, w, 2) to ``size`` frequencies, real and imaginary planes apart."""
    if weight.shape[1:3] == size:
        return weight
    planes = F.interpolate(weight.permute(3, 0, 1, 2), size=size, mode="bilinear", align_corners=True)
    return planes.permute(1, 2, 3, 0).contiguous()


class LocalFilter(Depthwise):
    """Depthwise 7 × 7 convolution, times ``SCALE``: (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, channels: int):
        super().__init__(channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered map."""
        return depthwise(x.permute(0, 3, 1, 2), SCALE * self.weight, SCALE * self.bias).permute(0, 2, 3, 1)


class GlobalLocalFilter(nn.Module):
    """Half the channels through a depthwise 3 × 3 convolution, half through a filter of all frequencies.

    ``(B, H, W, D) -> (B, H, W, D)``, normalized before and after, times ``scale``. ``grid`` is the map that the filter
    is learned for; it holds the frequencies of a real transform, (h, w // 2 + 1).
    """

    scale: ClassVar[float] = SCALE

    def __init__(self, channels: int, grid: tuple[int, int]):
        super().__init__()
        half = channels // 2
        self.pre_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.dw = Conv(half, half, 3, padding=1, groups=half, bias=False)
        self.complex_weight = nn.Parameter(trunc_normal_(torch.empty(half, grid[0], grid[1] // 2 + 1, 2), std=0.02))
        self.post_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.eval_cache = EvalCache()

    def filter(self, size: tuple[int, int]) -> Tensor:
        """Return the complex filter of a (H, W) map, (C, H, W // 2 + 1); kept in evaluation."""
        return self.eval_cache.get(self._filter, size, of=[self.complex_weight])

    def _filter(self, size: tuple[int, int]) -> Tensor:
        weight = resize_filter(self.complex_weight, (size[0], size[1] // 2 + 1))
        return torch.view_as_complex(weight if weight.dtype == torch.float64 else weight.float())

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered map."""
        size = (x.size(1), x.size(2))
        local, spread = self.pre_norm(x).chunk(2, dim=-1)
        local = self.dw(local)
        planes = spread.permute(0, 3, 1, 2)
        # Neither bfloat16 nor odd sizes in float16 have a Fourier transform.
        planes = planes if planes.dtype == torch.float64 else planes.float()
        planes = torch.fft.irfft2(torch.fft.rfft2(planes, norm="ortho") * self.filter(size), s=size, norm="ortho")
        # The halves alternate: local channel k becomes 2k, the global one 2k + 1.
        x = torch.stack([local, planes.permute(0, 2, 3, 1).to(local.dtype)], dim=-1).flatten(-2)
        norm = self.post_norm
        return F.layer_norm(x, norm.normalized_shape, self.scale * norm.weight, self.scale * norm.bias, norm.eps)


class GnConv(nn.Module):
    """Recursive gated convolution of order n: p ← pw_i(p) · q_i, the gates q from one depthwise filter.

    ``grid`` chooses the global filter and is its map; None is the 7 × 7 one.
    """

    def __init__(self, channels: int, order: int, grid: tuple[int, int] | None):
        super().__init__()
        self.parts = [channels // 2**i for i in reversed(range(order))]
        gates = sum(self.parts)
        self.proj_in = Pointwise(channels, 2 * channels)
        self.dwconv = LocalFilter(gates) if grid is None else GlobalLocalFilter(gates, grid)
        self.pws = nn.ModuleList(Pointwise(small, large) for small, large in pairwise(self.parts))
        self.proj_out = Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return new tokens (B, H, W, C)."""
        # Two products instead of one: the depthwise filter would have to copy its part of a common output.
        first = self.parts[0]
        weight, bias = self.proj_in.weight.flatten(1), self.proj_in.bias
        gates = self.dwconv(linear(x, weight[first:], bias[first:])).split(self.parts, dim=-1)
        x = linear(x, weight[:first], bias[:first]) * gates[0]
        for pointwise, gate in zip(self.pws, gates[1:], strict=True):
            x = pointwise(x) * gate
        return self.proj_out(x)


class Block(nn.Module):
    """x + γ₁ gnConv(LN x), then x + γ₂ MLP(LN x), each with stochastic depth."""

    def __init__(self, channels: int, order: int, grid: tuple[int, int] | None, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.gnconv = GnConv(channels, order, grid)
        self.gamma1 = nn.Parameter(torch.full((channels,), 1e-6))
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = Linear(channels, 4 * channels)
        self.pwconv2 = Linear(4 * channels, channels)
        self.gamma2 = nn.Parameter(torch.full((channels,), 1e-6))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, H, W, C)."""
        x = residual(x, lambda y: self.gamma1 * self.gnconv(self.norm1(y)), self.drop_path, self.training)
        return residual(x, lambda y: self.gamma2 * self.mlp(self.norm2(y)), self.drop_path, self.training)

    def mlp(self, x: Tensor) -> Tensor:
        """Return the MLP of each token."""
        return in_chunks(lambda y: self.pwconv2(gelu(self.pwconv1(y))), x, self.pwconv1.out_features)


@MODELS.register_module()
class HorNet(Backbone):
    """HorNet with outputs at strides 4, 8, 16 and 32 (floored), each with a norm of its own.

    Args:
        img_size: side that the global filters are learned for; the published segmentors take 384, detectors 224.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "hornet"
    label_rule = "pooling"
    # Section 3.2 and the repository's model table.
    archs: ClassVar = {
        "hornet_tiny_7x7": Spec(64),
        "hornet_tiny_gf": Spec(64, global_filter=True),
        "hornet_small_7x7": Spec(96),
        "hornet_small_gf": Spec(96, global_filter=True),
        "hornet_base_7x7": Spec(128),
        "hornet_base_gf": Spec(128, global_filter=True),
        "hornet_base_gf_img384": Spec(128, global_filter=True, img_size=384),
        "hornet_large_7x7": Spec(192),
        "hornet_large_gf": Spec(192, global_filter=True),
        "hornet_large_gf_img384": Spec(192, global_filter=True, img_size=384),
    }
    reported: ClassVar = {
        "hornet_tiny_7x7": Reported(22, 4.0, 82.8, 51.7, 44.8, 48.1, (README, DENSE)),
        "hornet_tiny_gf": Reported(23, 3.9, 83.0, 52.4, 45.6, 49.2, (README, DENSE)),
        "hornet_small_7x7": Reported(50, 8.8, 83.8, 52.7, 45.6, 49.2, (README, DENSE)),
        "hornet_small_gf": Reported(50, 8.7, 84.0, 53.3, 46.3, 50.0, (README, DENSE)),
        "hornet_base_7x7": Reported(87, 15.6, 84.2, 53.3, 46.1, 50.0, (README, DENSE)),
        "hornet_base_gf": Reported(88, 15.5, 84.3, 54.0, 46.9, 50.5, (README, DENSE)),
        "hornet_large_7x7": Reported(209, 34.8, None, 55.4, 48.0, 54.1, (README, DENSE, IN22K), HEAD_22K),
        "hornet_large_gf": Reported(211, 34.7, None, 56.0, 48.6, 55.0, (README, DENSE, IN22K), HEAD_22K),
        "hornet_large_gf_img384": Reported(216, 101.8, sources=(README,), reason=HEAD_22K),
    }
    dense_only = (r"norm\d\..+",)
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid([spec.channels * 2**i for i in range(len(spec.depths))])

    def build(self, spec: Spec, *, img_size: tuple[int, int]) -> None:
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        self.downsample_layers = nn.ModuleList()
        self.downsample_layers.append(
            nn.Sequential(Patches(self.in_channels, channels[0], 4), nn.LayerNorm(channels[0], eps=NORM_EPS))
        )
        for small, large in pairwise(channels):
            self.downsample_layers.append(nn.Sequential(nn.LayerNorm(small, eps=NORM_EPS), Patches(small, large, 2)))
        rates = iter(self.drop_path_rates())
        self.stages = nn.ModuleList()
        for index, depth in enumerate(spec.depths):
            is_global = spec.global_filter and index >= 2
            grid = tuple(max(side // STRIDES[index], 1) for side in img_size) if is_global else None
            self.stages.append(
                nn.Sequential(*(Block(channels[index], ORDERS[index], grid, next(rates)) for _ in range(depth)))
            )
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1], eps=NORM_EPS)
        self.apply(_init)

    def published_norm(self, index, channels):
        return f"norm{index}", nn.LayerNorm(channels, eps=NORM_EPS)

    def trunk(self, images, labels, count):
        x = images.permute(0, 2, 3, 1)
        for downsample, stage in zip(self.downsample_layers[:count], self.stages, strict=False):
            x = downsample(x)
            for block in stage:
                x = self.checkpointed(block, x)
            yield x, None

    def embedding(self, images, labels):
        *_, (x, _) = self.trunk(images, None, len(self.stages))
        self.observe(x, self.norm)
        return self.norm(x.mean(dim=(1, 2))), None

    def stage_modules(self):
        stem, *between = self.downsample_layers
        return [[stem], [self.stages[0]], *([d, s] for d, s in zip(between, self.stages[1:], strict=True))]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] == "stages":
            return sum(self.depths[: int(parts[1])]) + int(parts[2]) + 1
        if parts[0] != "downsample_layers":
            return self.depth + 1
        # A downsampling counts with the block behind it, as in the published fine-tuning.
        return sum(self.depths[: int(parts[1])]) + 1 if int(parts[1]) else 0

    def no_weight_decay(self):
        return {name for name, _ in self.named_parameters() if name.endswith((".gamma1", ".gamma2"))}

    def resize_loaded(self, state):
        own = dict(self.named_parameters())
        return {
            key: resize_filter(value, tuple(own[key].shape[1:3]))
            if key.endswith(".complex_weight") and key in own and value.dim() == 4
            else value
            for key, value in state.items()
        }


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
