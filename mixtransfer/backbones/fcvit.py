"""FCViT: convolutions of 11 × 11 pixels around a weighted global context, four stages, no attention.

Paper: Ma et al., "A Close Look at Spatial Modeling: From Attention to Convolution", arXiv 2212.12552. Code:
ma-xu/FCViT (Apache-2.0), on PoolFormer's skeleton. No installed library ships the network.

Shapes: B batch, C channels in h = 8 heads of d channels, H × W a stage's map, n = H·W; maps are (B, H, W, C) inside.

Kept from the published code: norms are over a whole image (GroupNorm of one group), so that padding an image changes
all of its features; similarities to the mean token are standardized over heads and positions together, with the
unbiased deviation; the global context is the larger of two linear maps before the last; dense maps have a norm each.
Different: context is added by one batched product instead of an outer product and a sum; similarities and their
statistics are in float32 also under autocast. The parameters are those that the published code builds, 4 to 5 % more
than its README counts. Switches that no published size turns on (spatial and channel attention) are not offered.

No attention: token labels are pooled to each output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixtransfer.backbones.base import Backbone, pyramid
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.channels_last import Pointwise, strips
from mixtransfer.layers.depthwise import Depthwise
from mixtransfer.layers.init import init_linear
from mixtransfer.layers.linear import gelu
from mixtransfer.layers.residual import residual
from mixtransfer.registry import MODELS

__all__ = ["FCViT"]

README = "ma-xu/FCViT, READMEs (COCO: Mask R-CNN, 12 epochs; ADE20K: Semantic FPN, 40k iterations)"
BINARY = "the README's M are 2²⁰ parameters, as which ours are 4.56, 14.02, 25.71 and 49.09"
HEADS = 8
KERNEL = 11
REDUCTION = 8
LEAST_HIDDEN = 16
STD_EPS = 1e-5


@dataclass(frozen=True)
class Spec:
    """One published size: blocks, channels and expansion of each stage; the first value of the layer scales."""

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    ratios: tuple[int, ...] = (8, 8, 4, 4)
    layer_scale: float = 1e-5


def by_head(x: Tensor) -> Tensor:
    """Return vectors (B, C) as matrices (B, h, C) whose row of a head is zero but in the head's channels."""
    heads = x.unflatten(1, (1, HEADS, -1)) * torch.eye(HEADS, dtype=x.dtype, device=x.device).unsqueeze(-1)
    return heads.flatten(2)


class MapNorm(nn.GroupNorm):
    """GroupNorm of one group on a map (B, H, W, C)."""

    def __init__(self, channels: int):
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized map."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class GlobalContext(nn.Module):
    """Add a vector that is computed from the mean token, weighted at each position by the similarity to that token."""

    def __init__(self, channels: int):
        super().__init__()
        self.rescale_weight = nn.Parameter(torch.ones(HEADS))
        self.rescale_bias = nn.Parameter(torch.zeros(HEADS))
        self.fc1 = nn.Linear(channels, 2 * channels // REDUCTION)
        self.fc2 = nn.Linear(channels // REDUCTION, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus its context, (B, H, W, C)."""
        tokens = x.flatten(1, 2)  # (B, n, C)
        mean = tokens.mean(dim=1)
        context = by_head(self.fc2(self.fc1(mean).unflatten(1, (2, -1)).amax(dim=1)))
        weights = self.similarity(tokens, mean).to(tokens.dtype)
        return torch.baddbmm(tokens, weights, context.to(tokens.dtype)).view(x.shape)

    def similarity(self, tokens: Tensor, mean: Tensor) -> Tensor:
        """Return the standardized, rescaled similarity of tokens (B, n, C) to their mean (B, C), (B, n, h)."""
        # The deviation is small beside the mean that is subtracted.
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            scale = (tokens.size(2) // HEADS) ** -0.5
            similarity = torch.bmm(tokens.to(dtype), by_head(mean.to(dtype) * scale).transpose(1, 2))
            std, center = torch.std_mean(similarity, dim=(1, 2), keepdim=True)
            slope = self.rescale_weight / (std + STD_EPS)
            return similarity * slope + (self.rescale_bias - center * slope)


class TokenMixer(nn.Module):
    """Twice: global context, large depthwise convolution, bottleneck of 1 × 1 convolutions, GELU."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // REDUCTION, LEAST_HIDDEN)

        def bottleneck() -> nn.Sequential:
            return nn.Sequential(Pointwise(channels, hidden), nn.GELU(), Pointwise(hidden, channels))

        self.gc1, self.gc2 = GlobalContext(channels), GlobalContext(channels)
        self.dw1, self.dw2 = (Depthwise(channels, KERNEL) for _ in range(2))
        self.fc1, self.fc2 = bottleneck(), bottleneck()

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map (B, H, W, C)."""
        x = gelu(self.fc1(self.dw1(self.gc1(x))))
        return gelu(self.fc2(self.dw2(self.gc2(x))))


class ChannelMixer(nn.Module):
    """1 × 1 convolution, depthwise 3 × 3, GELU, 1 × 1 convolution."""

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        hidden = ratio * channels
        self.fc1 = Pointwise(channels, hidden)
        self.dwconv = Depthwise(hidden, 3)
        self.fc2 = Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map (B, H, W, C)."""
        return strips(lambda y: self.fc2(gelu(self.dwconv(self.fc1(y)))), x, self.fc1.out_channels)


class Block(nn.Module):
    """x + s₁ · token mixer(GN x), then x + s₂ · channel mixer(GN x), each with stochastic depth."""

    def __init__(self, channels: int, ratio: int, layer_scale: float, drop_path: float):
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), layer_scale))
        self.norm1, self.norm2 = MapNorm(channels), MapNorm(channels)
        self.token_mixer = TokenMixer(channels)
        self.channel_mixer = ChannelMixer(channels, ratio)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape (B, H, W, C)."""
        x = residual(x, self._mix_tokens, self.drop_path, self.training)
        return residual(x, self._mix_channels, self.drop_path, self.training)

    def _mix_tokens(self, x: Tensor) -> Tensor:
        return self.layer_scale_1 * self.token_mixer(self.norm1(x))

    def _mix_channels(self, x: Tensor) -> Tensor:
        return self.layer_scale_2 * self.channel_mixer(self.norm2(x))


class PatchEmbed(nn.Module):
    """Overlapping strided convolution and BatchNorm; sides are rounded up."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map, (B, h, w, C') for (B, H, W, C)."""
        return self.norm(self.proj(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


@MODELS.register_module()
class FCViT(Backbone):
    """FCViT with outputs at strides 4, 8, 16 and 32, each with a norm of its own.

    Args:
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "fcvit"
    label_rule = "pooling"
    # Table 1 of the paper; parameters of the classifiers 4.8, 14.7, 27.0 and 51.5 million.
    archs = {
        "fcvit_tiny": Spec((3, 3, 5, 2), (32, 64, 160, 320)),
        "fcvit_b12": Spec((2, 2, 6, 2), (64, 128, 320, 512)),
        "fcvit_b24": Spec((4, 4, 12, 4), (64, 128, 320, 512)),
        "fcvit_b48": Spec((8, 8, 24, 8), (64, 128, 320, 512)),
    }
    reported = {
        "fcvit_tiny": Reported(4.6, None, 74.9, sources=(README,), reason=BINARY),
        "fcvit_b12": Reported(14, None, 80.9, 42.3, 38.6, 43.3, (README,), BINARY),
        "fcvit_b24": Reported(25.7, None, 82.5, 44.1, 39.9, 45.5, (README,), BINARY),
        "fcvit_b48": Reported(49.1, None, 83.6, sources=(README,), reason=BINARY),
    }
    # Numbered by the position in `network`, as published.
    dense_only = (r"norm[0246]\..+",)
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid(spec.channels)

    def build(self, spec: Spec) -> None:
        self.patch_embed = PatchEmbed(self.in_channels, spec.channels[0], 7, 4)
        rates = iter(self.drop_path_rates())
        self.network = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(spec.channels, spec.depths, strict=True)):
            if stage:
                self.network.append(PatchEmbed(spec.channels[stage - 1], channels, 3, 2))
            size = (channels, spec.ratios[stage], spec.layer_scale)
            self.network.append(nn.Sequential(*(Block(*size, next(rates)) for _ in range(depth))))
        if self.with_embedding:
            self.norm = MapNorm(spec.channels[-1])
        self.apply(_init)

    def published_norm(self, index, channels):
        return f"norm{2 * index}", MapNorm(channels)

    def trunk(self, images, labels, count):
        x = self.patch_embed(images.permute(0, 2, 3, 1).contiguous())
        for position, part in enumerate(self.network[: 2 * count - 1]):
            if position % 2:
                x = part(x)
                continue
            for block in part:
                x = self.checkpointed(block, x)
            yield x, None

    def stage_modules(self):
        # A stage starts with the convolution that makes its map.
        stages = (list(self.network[max(2 * i - 1, 0) : 2 * i + 1]) for i in range(len(self.depths)))
        return [[self.patch_embed], *stages]

    def layer_of(self, name):
        parts = name.split(".")
        if parts[0] != "network":
            return 0 if parts[0] == "patch_embed" else self.depth + 1
        stage, opens = (int(parts[1]) + 1) // 2, int(parts[1]) % 2
        return sum(self.depths[:stage]) + (0 if opens else int(parts[2])) + 1

    def no_weight_decay(self):
        ends = ("layer_scale_1", "layer_scale_2", "rescale_weight", "rescale_bias")
        return {name for name, _ in self.named_parameters() if name.endswith(ends)}


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / module.weight[:, 0].numel()))
        nn.init.zeros_(module.bias)
