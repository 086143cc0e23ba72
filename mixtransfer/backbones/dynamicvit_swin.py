"""DySwin: Swin whose less important positions take a fast path through the blocks of the third stage.

Paper: Rao et al., "Dynamic Spatial Sparsification for Efficient Vision Transformers and Convolutional Neural
Networks", T-PAMI 2023, arXiv 2207.01580. Code: raoyongming/DynamicViT (MIT). Predictors choose the positions that go
through a block's MLP, the slow path; the others go through a LayerNorm and one linear layer, the fast path. Attention
sees all. The choice itself is here for ``dynamicvit_convnext`` as well.

Shapes: B batch, N = H·W positions of the map, C channels, K label channels.

Kept from the published code: every predictor scores all positions anew, by their own features and the plain mean;
int(N · ratio) of them are slow in evaluation, with ratios r, r − 0.2 and r − 0.4 as floats give them; in training
both paths run on two streams of the whole map, blended by relaxed decisions (straight-through Gumbel), and both
branches are added to the same tokens; windows are not shifted where one covers the map.
Different: positions are sorted by path once a predictor, so that each path is one product and one gather puts them
back (the published evaluation scatters twice, and Swin's fails on batches of two); scores are log-odds with one
logistic draw. Maps of any size are padded as in ``swin``. A frozen third stage chooses as in evaluation.
The published code is a classifier; the maps are the stages' outputs, un-normalized. Shares are of the whole map: where
a batch is padded to one size, its padding competes for the slow path. Token labels follow the attention, both paths
acting on single tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixtransfer.backbones import swin
from mixtransfer.backbones.base import ATTENTION, pyramid
from mixtransfer.backbones.dynamicvit import (
    README,
    Encoded,
    Noise,
    Predictor,
    SparseBackbone,
    decide,
    next_rate,
)
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.layers.compiling import plain
from mixtransfer.layers.init import init_linear
from mixtransfer.layers.labels import image_label, labels_to_map, labels_to_tokens
from mixtransfer.layers.linear import Linear
from mixtransfer.layers.patches import PatchEmbed
from mixtransfer.layers.residual import keep_mask, residual_with_labels
from mixtransfer.registry import MODELS

__all__ = ["SPARSE_STAGE", "DynamicSwin", "Split", "blend", "choose", "drop", "falling_ratios"]

SPARSE_STAGE = 2


@dataclass(frozen=True)
class Spec:
    """One published size, the third stage's blocks before which positions are chosen, and the first share kept."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    locations: tuple[int, ...]
    rate: float
    window: int = 7


class Split(NamedTuple):
    """A choice of evaluation.

    Attributes:
        order: (B·N) int64, the positions of all images, those of the slow path first.
        back: (B·N) int64, where each position went.
        slow: how many take the slow path.
    """

    order: Tensor
    back: Tensor
    slow: int

    def run(self, x: Tensor, slow: Callable[[Tensor], Tensor], fast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return tokens (B, N, C), each through its path."""
        rows = x.flatten(0, 1).index_select(0, self.order)
        out = torch.cat([slow(rows[: self.slow]), fast(rows[self.slow :])])
        return out.index_select(0, self.back).view_as(x)


def choose(
    predictor: Predictor,
    x: Tensor | tuple[Tensor, Tensor],
    choice: Split | Tensor | None,
    ratio: float,
    noise: Noise | None,
    decisions: list[Tensor],
) -> tuple[Tensor | tuple[Tensor, Tensor], Split | Tensor]:
    """Choose the slow positions anew.

    Args:
        predictor: scores them; in training mode its decision is relaxed.
        x: the map (B, …, C), or its streams (slow, fast) after an earlier relaxed choice.
        choice: the choice before, or None.
        ratio: share that is slow.
        noise: draws relaxed decisions.
        decisions: list that gets a relaxed decision (B, N).

    Returns:
        The map or its streams, and the choice: a split, or a mask (B, …, 1) of 0 and 1.
    """
    streams = isinstance(x, tuple)
    whole = blend(choice, *x) if streams else x
    score = predictor(whole)
    if predictor.training:
        decisions.append(decide(score, noise))
        return (x if streams else (x, x)), decisions[-1].view(*whole.shape[:-1], 1)
    batch, positions = score.shape
    count = int(plain(positions) * ratio)
    order = score.argsort(dim=1, descending=True)
    order = order + positions * torch.arange(batch, device=order.device).unsqueeze(1)
    order = torch.cat([order[:, :count].flatten(), order[:, count:].flatten()])
    return x, Split(order, order.argsort(), batch * count)


def blend(mask: Tensor, kept: Tensor, others: Tensor) -> Tensor:
    """Return ``kept`` where the mask (B, …, 1) is one and ``others`` where it is zero."""
    return others + mask * (kept - others)


def drop(branch: Tensor, block: nn.Module) -> Tensor:
    """Apply a block's stochastic depth to a branch that was computed for all samples."""
    if not block.training or block.drop_path == 0:
        return branch
    return branch * keep_mask(len(branch), block.drop_path, branch)


def falling_ratios(rate: float, count: int) -> tuple[float, ...]:
    """Return the shares on the slow path, 0.2 less after each predictor; none where all positions are slow."""
    # Rounded as the published products of floats are: 196 · (0.7 − 0.2) counts 97 positions, not 98.
    return () if rate == 1 else tuple(rate - 0.2 * number for number in range(count))


class AdaBlock(swin.Block):
    """A Swin block whose MLP has a fast path beside it."""

    def __init__(self, channels: int, heads: int, window: int, drop_path: float):
        super().__init__(channels, heads, window, drop_path)
        path = nn.Sequential(nn.LayerNorm(channels), Linear(channels, channels))
        self.fastmlp = nn.Sequential(OrderedDict(fc1=path))

    def forward(self, x, grid: swin.WindowGrid, labels: Tensor | None, choice: Split | Tensor):
        """Return tokens (B, L, C), or their streams with a mask, and their labels (B, L, K) or None."""
        if isinstance(choice, Split):
            x, labels = self.attend(x, grid, labels)
            return x + choice.run(x, lambda y: self.mlp(self.norm2(y)), self.fastmlp), labels
        slow, fast = x
        x, labels = self.attend(blend(choice, slow, fast), grid, labels)
        slow = self.mlp(self.norm2(blend(choice, x, slow)))
        fast = self.fastmlp(blend(choice, fast, x))
        return (x + drop(slow, self), x + drop(fast, self)), labels

    def attend(self, x: Tensor, grid: swin.WindowGrid, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens with the attention added, and what became of their labels."""
        attention = lambda y, rows: self.attn(self.norm1(y), grid, rows)  # noqa: E731
        return residual_with_labels(x, labels, attention, self.drop_path, self.training)


class Stage(swin.Stage):
    """A Swin stage; from the first of ``locations`` on, its blocks have two paths."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        drop_paths: Sequence[float],
        merge: bool,
        locations: tuple[int, ...] = (),
    ):
        plain = locations[0] if locations else len(drop_paths)
        super().__init__(channels, heads, window, drop_paths[:plain], merge)
        self.locations = locations
        self.blocks.extend(AdaBlock(channels, heads, window, rate) for rate in drop_paths[plain:])
        if locations:
            self.score_predictor = nn.ModuleList(Predictor(channels) for _ in locations)


@MODELS.register_module()
class DynamicSwin(SparseBackbone):
    """DySwin with un-normalized outputs at strides 4, 8, 16 and 32.

    Args:
        keep_rate: share of positions on the first slow path, where it differs from the published one; 1 has no fast
            paths and no predictors, which is Swin.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "dynamicvit_swin"
    label_rule = "attention"
    evidence = ATTENTION
    last_block = ("layers", -1, "blocks", -1)
    drops_tokens = False
    # The repository's model table.
    archs = {
        "dynamicvit_swin_t_07": Spec(96, (2, 2, 6, 2), (3, 6, 12, 24), (1, 2, 3), 0.7),
        "dynamicvit_swin_s_07": Spec(96, (2, 2, 18, 2), (3, 6, 12, 24), (2, 4, 6), 0.7),
        "dynamicvit_swin_b_07": Spec(128, (2, 2, 18, 2), (4, 8, 16, 32), (2, 4, 6), 0.7),
    }
    reported = {
        "dynamicvit_swin_t_07": Reported(None, 4.0, 80.91, sources=(README,)),
        "dynamicvit_swin_s_07": Reported(None, 6.9, 83.21, sources=(README,)),
        "dynamicvit_swin_b_07": Reported(None, 12.1, 83.43, sources=(README,)),
    }
    official = KeyMap(derived=swin.DERIVED)
    embed_only = (r"norm\..+",)

    def outputs(self, spec):
        return pyramid([spec.channels * 2**i for i in range(len(spec.depths))])

    def build(self, spec: Spec, *, keep_rate: float | None = None) -> None:
        self.keep_ratios = falling_ratios(next_rate(keep_rate, spec.rate, 0.4, self.arch), len(spec.locations))
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        self.patch_embed = PatchEmbed(self.in_channels, channels[0], swin.PATCH, nn.LayerNorm(channels[0]))
        rates = iter(self.drop_path_rates())
        self.layers = nn.ModuleList(
            Stage(
                channels[i],
                spec.heads[i],
                spec.window,
                [next(rates) for _ in range(n)],
                merge=i < len(spec.depths) - 1,
                locations=spec.locations if i == SPARSE_STAGE and self.keep_ratios else (),
            )
            for i, n in enumerate(spec.depths)
        )
        if self.with_embedding:
            self.norm = nn.LayerNorm(channels[-1])
        self.apply(init_linear)

    stage_modules = swin.SwinTransformer.stage_modules
    no_weight_decay = swin.SwinTransformer.no_weight_decay
    resize_loaded = swin.SwinTransformer.resize_loaded

    def trunk(self, images, labels, count, noise: Noise | None = None, decisions: list[Tensor] | None = None):
        """Yield maps and labels as the contract says; relaxed decisions (B, N) are put into ``decisions``."""
        decisions = [] if decisions is None else decisions
        x, size = self.patch_embed(images)
        rows = None if labels is None else labels_to_tokens(labels, size)
        for index, stage in enumerate(self.layers[:count]):
            grids = stage.grids(size, x.device, shift=min(size) > stage.window)
            choice = None
            for number, block in enumerate(stage.blocks):
                if number in stage.locations:
                    which = stage.locations.index(number)
                    predictor, ratio = stage.score_predictor[which], self.keep_ratios[which]
                    x, choice = choose(predictor, x, choice, ratio, noise, decisions)
                chosen = () if choice is None else (choice,)
                x, rows = self.checkpointed(block, x, grids[number % 2], rows, *chosen)
            if isinstance(x, tuple):
                x = blend(choice, *x)
            yield x.unflatten(1, size), None if rows is None else labels_to_map(rows, size)
            if index < count - 1:
                rows = None if rows is None else swin.merge_labels(rows, size)
                x, size = stage.downsample(x, size)

    def encode(self, images, labels=None, noise=None):
        decisions: list[Tensor] = []
        *_, (x, label) = self.trunk(images, labels, len(self.layers), noise, decisions)
        x = self.norm(x)
        self.observe(x, lambda tokens: tokens)
        x = x.flatten(1, 2)
        return Encoded(x.mean(dim=1), x, None if label is None else image_label(label), tuple(decisions))

    def layer_of(self, name):
        parts = name.split(".")
        if "score_predictor" not in parts:
            return swin.SwinTransformer.layer_of(self, name)
        # A predictor counts with the block behind it.
        stage = int(parts[1])
        return sum(self.depths[:stage]) + self.layers[stage].locations[int(parts[3])] + 1
