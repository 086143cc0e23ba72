"""DynamicViT: DeiT and LV-ViT whose tokens are dropped on the way, as small predictors between the blocks decide.

Papers: Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS 2021,
arXiv 2106.02034, and "Dynamic Spatial Sparsification for Efficient Vision Transformers and Convolutional Neural
Networks", T-PAMI 2023, arXiv 2207.01580; LV-ViT: Jiang et al., "All Tokens Matter", NeurIPS 2021, arXiv 2104.10858.
Code: raoyongming/DynamicViT (MIT). The second paper's Swin and ConvNeXt are in ``dynamicvit_swin`` and
``dynamicvit_convnext``, the losses of all in :mod:`mixtransfer.pretrain.dynamic`.

Shapes: B batch, N = h·w patches of the image, n ≤ N of them still there, one class token in front; C channels, K label
channels, h heads, d channels a head.

Kept from the published code: in evaluation the tokens with the best scores go on, int(N · ratio) of them, and the rest
is not computed; in training every token goes on, a relaxed decision (straight-through Gumbel) masks the attention, and
later decisions are products with earlier ones; predictors have LayerNorms of eps 1e-5, DeiT's blocks of 1e-6.
Different: scores are log-odds and the two Gumbel draws are their difference, one logistic draw (the same decisions);
the masked softmax leaves out the published eps of 1e-6, which guards against a row whose visible logits are all far
below a hidden one's: here the largest visible logit is subtracted, so the forward pass is the fused kernel's. The
outputs differ by some 1e-6, the published float32 cast by 1e-7; the decisions' gradients stay bounded as there. At
least one token stays. Sides that 16 does not divide are padded and positions are resampled to the grid.
No dense code is published for these two. A dropped token keeps what it held when it was dropped, in evaluation and, by
the relaxed decision, in training; the maps are the un-normalized patch tokens after the blocks of ``out_indices``.
Token labels follow the tokens: a dropped one keeps its label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixtransfer.backbones import deit
from mixtransfer.backbones.base import ATTENTION, Backbone
from mixtransfer.backbones.reported import Reported
from mixtransfer.errors import UserError
from mixtransfer.layers.attention import attend_windows, mix_labels
from mixtransfer.layers.attention_maps import current_watch, noting
from mixtransfer.layers.host_draws import uniform
from mixtransfer.layers.init import init_linear, trunc_normal_
from mixtransfer.layers.labels import labels_to_map
from mixtransfer.layers.linear import Mlp
from mixtransfer.layers.patches import PatchEmbed, grid_of, pad_to_multiple
from mixtransfer.layers.residual import keep_mask, residual, residual_with_labels
from mixtransfer.registry import MODELS

__all__ = ["DynamicViT", "Encoded", "Predictor", "SparseBackbone", "decide", "logistic_noise", "next_rate"]

README = "raoyongming/DynamicViT, README"
CUT = "the README's count is cut after one decimal"
PATCH = 16
STEM_CHANNELS = 64
#: Bound on a hidden key's weight in the decisions' gradients, the one that the published eps of 1e-6 sets.
MAX_WEIGHT = 1e6

Noise = Callable[[tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Spec:
    """One published network: its size, the blocks before which tokens are dropped, and the share kept each time."""

    channels: int
    depth: int
    heads: int
    locations: tuple[int, ...]
    rate: float
    lvvit: bool = False
    img_size: int = 224

    @property
    def norm_eps(self) -> float:
        """Return the eps of the LayerNorms of blocks."""
        return 1e-5 if self.lvvit else deit.NORM_EPS


class Encoded(NamedTuple):
    """Outputs of a sparsified network that pretraining reads.

    Attributes:
        vector: the image embedding (B, D).
        tokens: the last tokens after the norm, (B, n, D); in evaluation those that are still there.
        label: the embedding's token label (B, K), or None.
        decisions: the relaxed decision of each predictor, (B, N) of 0 and 1; empty in evaluation.
    """

    vector: Tensor
    tokens: Tensor
    label: Tensor | None
    decisions: tuple[Tensor, ...]


def logistic_noise(
    shape: tuple[int, int], generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Draw, on the device of the generator, the difference of two Gumbel variables for every token (B, N)."""
    return torch.rand(shape, generator=generator, device=device).logit()


def decide(score: Tensor, noise: Noise | None = None) -> Tensor:
    """Return which tokens are kept, 0 or 1, of log-odds ``score`` (B, N), with the gradient of the relaxed decision."""
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    shape = tuple(score.shape)
    score = score + (uniform(shape, score.device).logit() if noise is None else noise(shape)).to(score)
    soft = score.sigmoid()
    return (score >= 0).to(score.dtype) + (soft - soft.detach())


def next_rate(rate: float | None, published: float, lowest: float, arch: str) -> float:
    """Return ``rate``, or the published one, after checking that it lies between ``lowest`` and 1."""
    if rate is not None and not lowest < rate <= 1:
        raise UserError(f"keep_rate={rate} of {arch}: give a share above {lowest} and up to 1 (no token is dropped)")
    return published if rate is None else rate


class Predictor(nn.Module):
    """The log-odds of keeping each token, from its own features and the mean of the tokens that are there.

    Half of the channels stay with the token, the other half are averaged (arXiv 2106.02034, section 3.2).
    """

    def __init__(self, channels: int, linear: type[nn.Module] = nn.Linear, eps: float = 1e-5):
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(channels, eps=eps), linear(channels, channels), nn.GELU())
        self.out_conv = nn.Sequential(
            linear(channels, channels // 2),
            nn.GELU(),
            linear(channels // 2, channels // 4),
            nn.GELU(),
            linear(channels // 4, 2),
        )

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return scores (B, N) of tokens (B, …, C); ``keep`` (B, N, 1) says which of them count in the mean."""
        local, shared = self.in_conv(x.flatten(1, -2)).chunk(2, dim=-1)
        if keep is None:
            mean = shared.mean(dim=1, keepdim=True)
        else:
            mean = (shared * keep).sum(dim=1, keepdim=True) / keep.sum(dim=1, keepdim=True).clamp(min=1)
        keep_logit, drop_logit = self.out_conv(torch.cat([local, mean.expand_as(local)], dim=-1)).unbind(-1)
        return keep_logit - drop_logit


class Attention(deit.Attention):
    """DeiT's attention, with keys that a decision may hide."""

    def __init__(self, channels: int, heads: int, qkv_bias: bool):
        super().__init__(channels, heads)
        if not qkv_bias:
            self.qkv = nn.Linear(channels, 3 * channels, bias=False)

    def forward(self, x: Tensor, labels: Tensor | None, keep: Tensor | None = None):
        """Return new tokens (B, 1+n, C) and the labels each attended to; ``keep`` (B, 1+n, 1) hides keys."""
        if keep is None:
            return super().forward(x, labels)
        batch, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = _MaskedAttention.apply(q, k, v, keep.squeeze(-1))
        attended = None
        if labels is not None or noting():
            with torch.no_grad():
                hidden = torch.zeros(batch, 1, tokens, tokens, device=x.device)
                hidden.masked_fill_(~_visible(keep.squeeze(-1)), -torch.inf)
                _, attended = attend_windows(q, k, v, hidden, labels)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, channels)), attended


class Block(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), each with stochastic depth; LV-ViT halves both."""

    def __init__(self, spec: Spec, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.channels, eps=spec.norm_eps)
        self.attn = Attention(spec.channels, spec.heads, qkv_bias=not spec.lvvit)
        self.norm2 = nn.LayerNorm(spec.channels, eps=spec.norm_eps)
        self.mlp = Mlp(spec.channels, (3 if spec.lvvit else 4) * spec.channels)
        self.scale = 0.5 if spec.lvvit else 1.0
        self.drop_path = drop_path

    def forward(self, x: Tensor, labels: Tensor | None, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, 1+n, C) and their labels (B, 1+n, K) or None."""
        if keep is None:
            x, labels = residual_with_labels(x, labels, self.attend, self.drop_path, self.training)
        else:
            # A decision belongs to one sample, so attention runs for all.
            branch, attended = self.attend(x, labels, keep)
            dropping = self.training and self.drop_path
            x = x + (branch * keep_mask(len(x), self.drop_path, x) if dropping else branch)
            labels = None if labels is None else mix_labels(labels, attended)
        return residual(x, lambda y: self.scaled(self.mlp(self.norm2(y))), self.drop_path, self.training), labels

    def attend(self, x: Tensor, labels: Tensor | None, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the branch of attention as it is added, and the labels that each token attended to."""
        branch, attended = self.attn(self.norm1(x), labels, keep)
        return self.scaled(branch), attended

    def scaled(self, branch: Tensor) -> Tensor:
        """Return a branch as it is added."""
        return branch if self.scale == 1 else branch * self.scale


class ConvStem(nn.Module):
    """LV-ViT's patch embedding: three convolutions at half the side, then patches of 8 (arXiv 2104.10858)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.conv2 = nn.Conv2d(STEM_CHANNELS, STEM_CHANNELS, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(STEM_CHANNELS)
        self.conv3 = nn.Conv2d(STEM_CHANNELS, STEM_CHANNELS, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(STEM_CHANNELS)
        self.proj = nn.Conv2d(STEM_CHANNELS, channels, PATCH // 2, PATCH // 2)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return tokens (B, h·w, C) and the grid (h, w)."""
        x = pad_to_multiple(images, PATCH)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2), (x.size(2), x.size(3))


class SparseBackbone(Backbone):
    """Base of the sparsified families, with the facts that pretraining reads.

    Attributes:
        keep_ratios: share of all positions that each predictor keeps; empty without predictors.
        drops_tokens: whether the others are gone, or take a fast path.
        added: beginnings, after a dot, of the names of layers that the network before sparsification lacks.
    """

    keep_ratios: tuple[float, ...]
    drops_tokens: ClassVar[bool]
    added: ClassVar[tuple[str, ...]] = ("score_predictor", "fastmlp", "fast_path")

    def encode(self, images: Tensor, labels: Tensor | None = None, noise: Noise | None = None) -> Encoded:
        """Run the published classifier's trunk.

        Args:
            images: (B, 3, H, W).
            labels: token labels (B, K, h, w), or None.
            noise: draws the decisions of training, called once a predictor with (B, N); torch's generator if None.
        """
        raise NotImplementedError

    def embedding(self, images, labels):
        encoded = self.encode(images, labels)
        return encoded.vector, encoded.label


@MODELS.register_module()
class DynamicViT(SparseBackbone):
    """DyViT and DyLVViT; outputs have stride 16, a neck makes their pyramid.

    Args:
        img_size: side that the position table is made for.
        keep_rate: share of the tokens that each predictor keeps, where it differs from the published one; 1 drops
            nothing and has no predictors, which is the network that the sparsified one is made from.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "dynamicvit"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("blocks", -1)
    drops_tokens = True
    # Published weights (the repository's model table) and the rates of arXiv 2106.02034, table 1.
    archs = {
        "dynamicvit_deit_256_07": Spec(256, 12, 4, (3, 6, 9), 0.7),
        "dynamicvit_deit_s_07": Spec(384, 12, 6, (3, 6, 9), 0.7),
        "dynamicvit_deit_s_08": Spec(384, 12, 6, (3, 6, 9), 0.8),
        "dynamicvit_deit_s_09": Spec(384, 12, 6, (3, 6, 9), 0.9),
        "dynamicvit_deit_b_07": Spec(768, 12, 12, (3, 6, 9), 0.7),
        "dynamicvit_lvvit_s_05": Spec(384, 16, 6, (4, 8, 12), 0.5, lvvit=True),
        "dynamicvit_lvvit_s_07": Spec(384, 16, 6, (4, 8, 12), 0.7, lvvit=True),
        "dynamicvit_lvvit_s_08": Spec(384, 16, 6, (4, 8, 12), 0.8, lvvit=True),
        "dynamicvit_lvvit_s_09": Spec(384, 16, 6, (4, 8, 12), 0.9, lvvit=True),
        "dynamicvit_lvvit_m_07": Spec(512, 20, 8, (5, 10, 15), 0.7, lvvit=True),
        "dynamicvit_lvvit_m_08": Spec(512, 20, 8, (5, 10, 15), 0.8, lvvit=True),
        "dynamicvit_lvvit_m_09": Spec(512, 20, 8, (5, 10, 15), 0.9, lvvit=True),
    }
    reported = {
        "dynamicvit_deit_256_07": Reported(None, 1.3, 76.53, sources=(README,), reason=CUT),
        "dynamicvit_deit_s_07": Reported(None, 2.9, 79.32, sources=(README,), reason=CUT),
        "dynamicvit_deit_b_07": Reported(None, 11.4, 81.43, sources=(README,)),
        "dynamicvit_lvvit_s_05": Reported(None, 3.7, 81.97, sources=(README,), reason=CUT),
        "dynamicvit_lvvit_s_07": Reported(None, 4.6, 83.08, sources=(README,), reason=CUT),
        "dynamicvit_lvvit_m_07": Reported(None, 8.5, 83.82, sources=(README,), reason=CUT),
    }
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return [(spec.channels, PATCH)] * spec.depth

    def build(self, spec: Spec, *, img_size: tuple[int, int], keep_rate: float | None = None) -> None:
        self.grid = grid_of(img_size, PATCH)
        self.has_token_logits = spec.lvvit
        rate = next_rate(keep_rate, spec.rate, 0, self.arch)
        self.locations = () if rate == 1 else spec.locations
        self.keep_ratios = tuple(rate ** (number + 1) for number in range(len(self.locations)))
        stem = ConvStem if spec.lvvit else PatchEmbed
        self.patch_embed = stem(self.in_channels, spec.channels, *(() if spec.lvvit else (PATCH,)))
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, spec.channels), std=0.02))
        tokens = 1 + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, tokens, spec.channels), std=0.02))
        self.blocks = nn.ModuleList(Block(spec, rate) for rate in self.drop_path_rates())
        if self.locations:
            self.score_predictor = nn.ModuleList(Predictor(spec.channels) for _ in self.locations)
        if self.with_embedding:
            self.norm = nn.LayerNorm(spec.channels, eps=spec.norm_eps)
        self.apply(init_linear)

    # Class token and position table are DeiT's.
    tokens = deit.VisionTransformer.tokens
    no_weight_decay = deit.VisionTransformer.no_weight_decay
    resize_loaded = deit.VisionTransformer.resize_loaded

    def trunk(self, images, labels, count):
        x, rows, grid = self.tokens(images, labels)
        whole, whole_rows, keep, places = x, rows, None, None
        for index, block in enumerate(self.blocks[:count]):
            if index in self.locations and self.training:
                keep = self.relaxed(index, x, keep)
            elif index in self.locations:
                whole, whole_rows = _put(whole, places, x), _put(whole_rows, places, rows)
                chosen = self.best(index, x, grid)
                places = chosen if places is None else places.gather(1, chosen)
                x, rows = _take(x, chosen), _take(rows, chosen)
            new, moved = self.checkpointed(block, x, rows, keep)
            x, rows = (new, moved) if keep is None else (_hold(keep, new, x), _hold(keep.detach(), moved, rows))
            # Putting tokens back costs a copy, which a map that is not returned is spared.
            if index in self.out_indices:
                whole, whole_rows = _put(whole, places, x), _put(whole_rows, places, rows)
            yield whole[:, 1:].unflatten(1, grid), None if rows is None else labels_to_map(whole_rows[:, 1:], grid)

    def encode(self, images, labels=None, noise=None):
        x, rows, grid = self.tokens(images, labels)
        whole, keep, places, decisions = x, None, None, []
        for index, block in enumerate(self.blocks):
            if index in self.locations and self.training:
                keep = self.relaxed(index, x, keep, noise)
                decisions.append(keep[:, 1:, 0])
            elif index in self.locations:
                chosen = self.best(index, x, grid)
                if current_watch() is not None:
                    whole, places = _put(whole, places, x), chosen if places is None else places.gather(1, chosen)
                x, rows = _take(x, chosen), _take(rows, chosen)
            x, rows = self.checkpointed(block, x, rows, keep)
        if current_watch() is not None:
            patches = _put(whole, places, x)[:, 1:].unflatten(1, grid)
            self.observe(patches, self.norm, None if places is None else places[:, 1:] - 1)
        x = self.norm(x)
        return Encoded(x[:, 0], x[:, 1:], None if rows is None else rows[:, 0], tuple(decisions))

    def best(self, index: int, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the tokens (B, 1+k) that go on to block ``index``: the class token and those with the best scores."""
        number = self.locations.index(index)
        score = self.score_predictor[number](x[:, 1:])
        chosen = score.topk(max(int(grid[0] * grid[1] * self.keep_ratios[number]), 1), dim=1).indices
        return F.pad(chosen + 1, (1, 0))

    def relaxed(self, index: int, x: Tensor, keep: Tensor | None, noise: Noise | None = None) -> Tensor:
        """Return which tokens block ``index`` sees, (B, 1+N, 1) of 0 and 1; dropped ones stay dropped."""
        patches = torch.ones_like(x[:, 1:, :1]) if keep is None else keep[:, 1:]
        score = self.score_predictor[self.locations.index(index)](x[:, 1:], patches)
        return F.pad(decide(score, noise).unsqueeze(-1) * patches, (0, 0, 1, 0), value=1.0)

    def stage_modules(self):
        parts = [[block] for block in self.blocks]
        for number, index in enumerate(self.locations):
            parts[index].append(self.score_predictor[number])
        return [[self.patch_embed, self.cls_token, self.pos_embed], *parts]

    def layer_of(self, name):
        part, *rest = name.split(".")
        if part == "blocks":
            return int(rest[0]) + 1
        if part == "score_predictor":
            return self.locations[int(rest[0])] + 1
        return 0 if part in ("patch_embed", "cls_token", "pos_embed") else self.depth + 1


def _take(x: Tensor | None, places: Tensor) -> Tensor | None:
    """Return the tokens at ``places`` (B, n) of (B, N, C)."""
    if x is None:
        return None
    # Whole rows are copied many times faster than elements are gathered.
    rows = places + x.size(1) * torch.arange(x.size(0), device=x.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*places.shape, -1)


def _put(whole: Tensor | None, places: Tensor | None, x: Tensor | None) -> Tensor | None:
    """Return ``whole`` (B, N, C) with ``x`` (B, n, C) at ``places``; ``x`` where that is all of them."""
    return x if x is None or places is None else whole.scatter(1, places.unsqueeze(-1).expand_as(x), x.to(whole.dtype))


def _hold(keep: Tensor, new: Tensor | None, old: Tensor | None) -> Tensor | None:
    """Return ``new`` for tokens that are kept and ``old`` for the others, with a gradient for the decision."""
    return None if new is None else old + keep * (new - old)


def _visible(keep: Tensor) -> Tensor:
    """Return which keys each query sees, (B, 1, N, N): those that are kept (B, N), and its own."""
    own = torch.eye(keep.size(1), dtype=torch.bool, device=keep.device)
    return (keep.detach() > 0)[:, None, None] | own


class _MaskedAttention(torch.autograd.Function):
    """Attention to kept keys, by the fused kernel; the decisions get the gradient of multiplying the weights by them.

    A = e P / Σ e P with P_ij = keep_j, and 1 for j = i. ∂A_ij / ∂keep_j does not vanish where keep_j = 0, which is what
    allows a dropped token to come back; the backward pass makes the map once, hidden keys included.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        visible = _visible(keep)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        ctx.save_for_backward(q, k, v, out, visible)
        ctx.dtype = keep.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, visible = ctx.saved_tensors
        scale, wide = q.size(-1) ** -0.5, torch.promote_types(q.dtype, torch.float32)
        weights = (q @ k.transpose(-1, -2)).to(wide) * scale
        weights -= weights.masked_fill(~visible, -torch.inf).logsumexp(dim=-1, keepdim=True)
        weights = weights.exp_().clamp_(max=MAX_WEIGHT)
        grad = (grad_out @ v.transpose(-1, -2)).to(wide)
        grad -= (grad_out * out).sum(dim=-1, keepdim=True, dtype=wide)
        grad *= weights
        grad_keep = None
        if ctx.needs_input_grad[3]:
            own = grad.diagonal(dim1=-2, dim2=-1).sum(dim=1)
            grad_keep = (grad.sum(dim=(1, 2)) - own).to(ctx.dtype)
        grad = grad.masked_fill_(~visible, 0).to(q.dtype)
        weights = weights.masked_fill_(~visible, 0).to(q.dtype)
        grad_q, grad_k = (grad @ k) * scale, (grad.transpose(-1, -2) @ q) * scale
        return grad_q, grad_k, weights.transpose(-1, -2) @ grad_out, grad_keep
