"""FAN: a transformer whose MLP reweights its channels by attention among them, on patches or on a ConvNeXt stem.

Papers: Zhou et al., "Understanding The Robustness in Vision Transformers", ICML 2022, arXiv 2204.12451; Zhao et al.,
"Fully Attentional Networks with Self-emerging Token Labeling" (STL), ICCV 2023, arXiv 2401.03844, trains the
``_token`` networks. Code: NVlabs/FAN and NVlabs/STL, both under the NVIDIA Source Code License-NC (no commercial use);
nothing here is taken from them. No library of ours ships FAN.

Shapes: B batch, N = h·w tokens at stride 16, D channels, H heads of c = D / H channels, K label channels.

Kept from the published code: stochastic depth at one rate in all blocks; LayerNorm eps 1e-6, but 1e-5 in the channel
processing; no activation between the two layers of its MLP but a depthwise branch; the norms of the ConvNeXt stem,
its first aside, divide by the unbiased deviation; hybrids floor sides, plain networks do not; class attention doubles
the patch tokens. Position codes of the dense networks give each channel a frequency of its own, those of the
classifiers a pair of channels; ``paired_frequencies`` carries the latter over.
Dense maps: hybrids give both stages of the stem, the tokens behind one block, and those behind class attention, at
stride 32 through a new convolution (detectors) or at 16 (``_seg``); the ``_token`` detectors norm each map; plain
networks give the tokens behind blocks 5, 8 and 12 and behind class attention. XLarge, which has a coarser grid in its
last three blocks and no dense code, gives those before it, and behind class attention.
Different: a side shorter than a stride is padded to it with zeros. STL's classifier of single tokens, ``aux_head``, is
no part of the backbone; ``TokenLabelingClassifier`` trains it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.base import ATTENTION, Backbone, pyramid
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.attention import ClassAttention, attend, mix_labels
from mixtransfer.layers.channel_processing import ChannelProcessing
from mixtransfer.layers.channels_last import Conv, Patches, Pointwise
from mixtransfer.layers.depthwise import Depthwise
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens, pool_labels
from mixtransfer.layers.linear import Linear, Mlp, linear
from mixtransfer.layers.positions import FourierCode
from mixtransfer.layers.residual import residual_of_all, residual_with_labels
from mixtransfer.registry import MODELS

__all__ = ["FAN"]

README = "NVlabs/FAN, README (COCO: Cascade Mask R-CNN)"
FLOPS = "multiply-accumulates: arXiv 2204.12451 as quoted by arXiv 2401.03844"
STL = "token labels from a labeler: NVlabs/STL, README, and arXiv 2401.03844"
ROUNDED = "the paper prints 28.3"
HOOKS = (
    "the paper's fit a count by hooks on layers, which sees no products of attention: ours are within 1 % without them"
)
HEAD = "a second head of its training (0.3 M of Tiny's remain)"
HEAD_AND_HOOKS = (
    "parameters: a second head of its training; multiply-accumulates: with that head on all tokens, and without the "
    "products of attention, which hooks on layers do not see, ours are within 1 %"
)
NORM_EPS = 1e-6
STEM_CHANNELS, COARSE_CHANNELS = (128, 256), 768
STRIDE, OUTPUTS = 16, 4


@dataclass(frozen=True)
class Spec:
    """One published size.

    Attributes:
        channels: D.
        depth: blocks before the two of class attention.
        heads: H.
        taps: blocks, from 0, whose tokens are outputs.
        stem: ConvNeXt blocks of the stages at strides 4 and 8; None for plain convolutions.
        coarse: whether the last map is brought to stride 32.
        out_norms: whether each map has a norm.
        late: the first block of a coarser grid, and D and H from there on.
    """

    channels: int
    depth: int
    heads: int
    taps: tuple[int, ...] = (4, 7, 11)
    stem: tuple[int, int] | None = None
    coarse: bool = False
    out_norms: bool = False
    late: tuple[int, int, int] | None = None


class UnbiasedNorm(nn.LayerNorm):
    """LayerNorm over channels that divides by the unbiased deviation."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return normalized tokens (…, C)."""
        # The variance is C / (C − 1) times the biased one; both sides of the fraction are scaled to the fused kernel's.
        ratio = 1 - 1 / x.size(-1)
        return F.layer_norm(x, self.normalized_shape, ratio**0.5 * self.weight, self.bias, ratio * self.eps)


class StemBlock(nn.Module):
    """ConvNeXt: x + γ MLP(norm(depthwise 7 × 7 x)) on maps (B, H, W, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_dw = Depthwise(channels, 7)
        self.norm = UnbiasedNorm(channels)
        self.mlp = nn.ModuleDict({"fc1": Pointwise(channels, 4 * channels), "fc2": Pointwise(4 * channels, channels)})
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        hidden = F.gelu(self.mlp["fc1"](self.norm(self.conv_dw(x))))
        return x + self.gamma * self.mlp["fc2"](hidden)


def stem_stage(downsample: nn.Module, channels: int, depth: int) -> nn.Sequential:
    """Return ``depth`` ConvNeXt blocks behind a downsampling."""
    blocks = nn.Sequential(*(StemBlock(channels) for _ in range(depth)))
    return nn.Sequential(OrderedDict(downsample=downsample, blocks=blocks))


class HybridEmbed(nn.Module):
    """A ConvNeXt stem, which is 4 × 4 patches and two stages at strides 4 and 8, and 2 × 2 patches of its last map."""

    def __init__(self, in_channels: int, channels: int, depths: tuple[int, int]):
        super().__init__()
        first, second = STEM_CHANNELS
        stem = nn.Sequential(Patches(in_channels, first, 4), nn.LayerNorm(first, eps=NORM_EPS))
        fine = stem_stage(nn.Identity(), first, depths[0])
        middle = stem_stage(nn.Sequential(UnbiasedNorm(first), Patches(first, second, 2)), second, depths[1])
        self.backbone = nn.ModuleDict({"stem": stem, "stages": nn.ModuleList([fine, middle])})
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.proj = Patches(second, channels, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the tokens (B, h, w, D) and the maps (B, H, W, C) of the two stages."""
        stem, (first, second) = self.backbone["stem"], self.backbone["stages"]
        fine = first(stem(images.permute(0, 2, 3, 1)))
        middle = second(fine)
        return self.proj(middle), [fine, middle]


class ConvEmbed(nn.Module):
    """Four strided 3 × 3 convolutions with BatchNorm, GELU between them."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        widths = [in_channels, channels // 8, channels // 4, channels // 2, channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            conv = nn.Conv2d(before, after, 3, 2, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(after)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the tokens (B, h, w, D) and no further maps."""
        return self.proj(images).permute(0, 2, 3, 1), []


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = Linear(channels, channels)
        self.kv = Linear(channels, 2 * channels)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return new tokens (B, N, D) and the labels each of them attended to (B, N, K)."""
        weight, bias = torch.cat([self.q.weight, self.kv.weight]), torch.cat([self.q.bias, self.kv.bias])
        q, k, v = linear(x, weight, bias).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out, attended = attend(q, k, v, labels)
        return self.proj(out.transpose(1, 2).flatten(2)), attended


class Downsample(nn.Module):
    """A convolution of 3 × 3 that halves the grid, and a norm."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = Conv(channels, out_channels, 3, 2, padding=1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(
        self, x: Tensor, rows: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Return tokens (B, n, C), their labels (B, n, K) or None, and the grid."""
        x = self.proj(x.unflatten(1, size))
        rows = None if rows is None else halved(labels_to_map(rows, size)).flatten(2).transpose(1, 2)
        return self.norm(x).flatten(1, 2), rows, (x.size(1), x.size(2))


def halved(labels: Tensor) -> Tensor:
    """Return the mean label (B, K, h, w) under each convolution of 3 × 3 that halves a grid; padding has none."""
    return F.avg_pool2d(labels, 3, 2, padding=1, count_include_pad=False)


class Block(nn.Module):
    """x + γ₁ attention(LN x), then x + γ₂ channel processing(LN x), each with stochastic depth."""

    def __init__(self, channels: int, heads: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = Attention(channels, heads)
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = ChannelProcessing(channels, heads)
        self.gamma2 = nn.Parameter(torch.ones(channels))
        self.drop_path = drop_path

    def forward(self, x: Tensor, size: tuple[int, int], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, N, D) and their labels (B, N, K) or None."""
        x, labels = residual_with_labels(x, labels, self.attention, self.drop_path, self.training)
        branch = self.gamma2 * self.mlp(self.norm2(x), size)
        return residual_of_all(x, branch, self.drop_path, self.training), labels

    def attention(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the attention branch (B, N, D) and the labels that each token attended to."""
        x, attended = self.attn(self.norm1(x), labels)
        return self.gamma1 * x, attended


class ClassBlock(nn.Module):
    """u = t + γ₁ [class attention(LN t), LN of the patches], then LN u + [γ₂ MLP(LN u) of the class token, LN u].

    Patches never read the class token, so each side is computed only where it is needed.
    """

    def __init__(self, channels: int, heads: int, with_class_token: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        if with_class_token:
            self.attn = ClassAttention(channels, heads)
            self.mlp = Mlp(channels, 4 * channels)
            self.gamma2 = nn.Parameter(torch.ones(channels))

    def patches(self, x: Tensor) -> Tensor:
        """Return the new patch tokens (B, N, D)."""
        return 2 * self.norm2(x + self.gamma1 * self.norm1(x))

    def class_token(self, token: Tensor, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the new class token (B, 1, D), given the patches before this block, and the label it attended to."""
        attention, attended = self.attn(self.norm1(torch.cat([token, x], dim=1)), labels)
        token = self.norm2(token + self.gamma1 * attention)
        return token + self.gamma2 * self.mlp(token), attended


_PLAIN = {
    "fan_vit_tiny": Spec(192, 12, 4),
    "fan_vit_small": Spec(384, 12, 8),
    "fan_vit_base": Spec(448, 18, 8),
    "fan_vit_large": Spec(480, 24, 10),
}
_HYBRID = {
    "fan_hybrid_tiny": Spec(192, 8, 8, (7,), stem=(3, 3), coarse=True),
    "fan_hybrid_small": Spec(384, 10, 8, (9,), stem=(3, 3), coarse=True),
    "fan_hybrid_base": Spec(448, 16, 8, (15,), stem=(3, 3), coarse=True),
    "fan_hybrid_large": Spec(480, 22, 10, (18,), stem=(3, 5), coarse=True),
}
_XLARGE = Spec(528, 23, 11, (19,), stem=(3, 7), late=(20, 768, 16))


@MODELS.register_module()
class FAN(Backbone):
    """Fully attentional network with four outputs, see the module's docstring for where they lie.

    Args:
        paired_frequencies: give dense maps the position code that the classifier is trained with.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "fan"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("blocks", -1)
    # Table 1 of the first paper and the repositories' model functions.
    archs = {
        **_PLAIN,
        **{f"{name}_seg": spec for name, spec in _PLAIN.items()},
        **_HYBRID,
        **{f"{name}_seg": replace(spec, coarse=False) for name, spec in _HYBRID.items()},
        **{f"{name}_token": replace(spec, out_norms=True) for name, spec in _HYBRID.items()},
        "fan_hybrid_xlarge": _XLARGE,
    }
    reported = {
        "fan_vit_tiny": Reported(7.3, None, 79.2, sources=(README,)),
        "fan_vit_small": Reported(28.0, None, 82.5, sources=(README,), reason=ROUNDED),
        "fan_vit_base": Reported(54.0, None, 83.6, sources=(README,)),
        "fan_vit_large": Reported(80.5, None, 83.9, sources=(README,)),
        "fan_hybrid_tiny": Reported(7.4, 3.5, 80.1, 50.2, sources=(README, FLOPS), reason=HOOKS),
        "fan_hybrid_small": Reported(26.3, 6.7, 83.5, 53.3, sources=(README, FLOPS), reason=HOOKS),
        "fan_hybrid_base": Reported(50.4, 11.3, 83.9, 54.2, sources=(README, FLOPS), reason=HOOKS),
        "fan_hybrid_large": Reported(76.8, 16.9, 84.3, 55.1, sources=(README, FLOPS), reason=HOOKS),
        "fan_hybrid_tiny_token": Reported(8.0, 3.6, 79.9, sources=(STL,), reason=HEAD),
        "fan_hybrid_small_token": Reported(26.5, 6.8, 83.4, sources=(STL,), reason=HEAD_AND_HOOKS),
        "fan_hybrid_base_token": Reported(50.9, 11.4, 84.5, sources=(STL,), reason=HEAD_AND_HOOKS),
        "fan_hybrid_large_token": Reported(77.3, None, 84.7, sources=(STL,)),
    }
    dense_only = (r"learnable_downsample\..+", r"out_norm\d\..+")
    embed_only = (r"norm\..+", "cls_token", r"cls_attn_blocks\.\d\.((attn|mlp)\..+|gamma2)")
    official = KeyMap(derived=(r"aux_head\..+",))

    def outputs(self, spec):
        tokens = (spec.channels, STRIDE)
        stem = [] if spec.stem is None else pyramid(STEM_CHANNELS)
        late = COARSE_CHANNELS if spec.coarse else spec.late and spec.late[1]
        return [*stem, *[tokens] * len(spec.taps), (late, 2 * STRIDE) if late else tokens]

    def build(self, spec: Spec, *, paired_frequencies: bool = False) -> None:
        #: The first block of the coarser grid, and channels and heads there; behind all blocks where there is none.
        self.late, *last = spec.late or (spec.depth, spec.channels, spec.heads)
        self.embed_channels, self.out_norms = last[0], spec.out_norms
        self.paired_frequencies = paired_frequencies
        #: Of each output that is not a map of the stem, the number of blocks before it.
        self.ends = (*(tap + 1 for tap in spec.taps), spec.depth)
        sizes = [(spec.channels, spec.heads)] * self.late + [tuple(last)] * (spec.depth - self.late)
        widths = self.in_channels, spec.channels
        self.patch_embed = ConvEmbed(*widths) if spec.stem is None else HybridEmbed(*widths, spec.stem)
        self.pos_embed = FourierCode(spec.channels)
        self.blocks = nn.ModuleList(Block(*size, self.drop_path_rate) for size in sizes)
        self.cls_attn_blocks = nn.ModuleList(ClassBlock(*last, self.with_embedding) for _ in range(2))
        if self.with_embedding:
            self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, last[0]), std=0.02))
            self.norm = nn.LayerNorm(last[0], eps=NORM_EPS)
        if self.late < spec.depth:
            self.blocks[self.late - 1].downsample = Downsample(spec.channels, last[0])
        self.learnable_downsample = None
        if spec.coarse and OUTPUTS - 1 in self.out_indices:
            self.learnable_downsample = Conv(spec.channels, COARSE_CHANNELS, 3, 2, padding=1)
        self.apply(init_linear)

    def published_norm(self, index, channels):
        return (f"out_norm{index}", nn.LayerNorm(channels)) if self.out_norms else None

    def output_stage(self, index):
        # The last output comes from class attention, which is no stage.
        return [*[0] * (OUTPUTS - len(self.ends)), *self.ends[:-1], self.depth + 1][index]

    def tokens(self, images: Tensor, labels: Tensor | None, paired: bool):
        """Return tokens (B, N, D) with positions, labels (B, N, K) or None, grid, and the maps of the stem."""
        x, maps = self.patch_embed(images)
        size = (x.size(1), x.size(2))
        rows = None if labels is None else labels_to_tokens(labels, size)
        return (x + self.pos_embed(size, paired)).flatten(1, 2), rows, size, maps

    def trunk(self, images, labels, count):
        x, rows, size, stem = self.tokens(images, labels, self.paired_frequencies)
        for fine in stem[:count]:
            yield fine, None if labels is None else pool_labels(labels.detach(), tuple(fine.shape[1:3]))
        for index, (start, end) in enumerate(pairwise((0, *self.ends)), len(stem)):
            if index >= count:
                return
            x, rows, size = self.through(range(start, end), x, rows, size)
            if index < OUTPUTS - 1:
                yield _as_map(x, rows, size)
        for block in self.cls_attn_blocks:
            x = block.patches(x)
        last, label = _as_map(x, rows, size)
        if self.learnable_downsample is not None:
            last = self.learnable_downsample(last)
            label = None if label is None else halved(label)
        yield last, label

    def through(self, blocks: range, x: Tensor, rows: Tensor | None, size: tuple[int, int]):
        """Return tokens, labels and grid behind some of the blocks."""
        for index in blocks:
            if index == self.late:
                x, rows, size = self.blocks[index - 1].downsample(x, rows, size)
            x, rows = self.checkpointed(self.blocks[index], x, size, rows)
        return x, rows, size

    def embedding(self, images, labels):
        x, rows, size, _ = self.tokens(images, labels, paired=True)
        x, rows, size = self.through(range(self.depth), x, rows, size)
        token = self.cls_token.expand(x.size(0), -1, -1)
        label = None if labels is None else image_label(labels).unsqueeze(1)
        *_, last = self.cls_attn_blocks
        for block in self.cls_attn_blocks:
            seen = None if label is None else torch.cat([label, rows], dim=1)
            token, attended = block.class_token(token, x, seen)
            label = None if label is None else mix_labels(label, attended)
            if block is not last:
                x = block.patches(x)
        self.observe(x.unflatten(1, size), lambda patches: self.norm(last.patches(patches)))
        return self.norm(token[:, 0]), None if label is None else label[:, 0]

    def stage_modules(self):
        return [[self.patch_embed, self.pos_embed], *([block] for block in self.blocks)]

    def layer_of(self, name):
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed.", "pos_embed.")) else self.depth + 1

    def no_weight_decay(self):
        gammas = ("gamma", "gamma1", "gamma2", "cls_token")
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in gammas}


def _as_map(x: Tensor, rows: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Return tokens (B, N, D) as a map (B, h, w, D), and label rows as one (B, K, h, w)."""
    return x.unflatten(1, size), None if rows is None else labels_to_map(rows, size)
