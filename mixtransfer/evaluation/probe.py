"""The frozen dense probe: linear classifiers of every position on a backbone's maps.

The backbone runs once over the dataset and its maps are kept. Then heads are trained on them, every learning rate and
seed at once: BatchNorm and a linear layer on each map, as DINOv3 measures ADE20K, and on all maps together. Where maps
differ in size, the answers of the coarser ones are enlarged to the finest, so "all" is BatchNorm and a linear layer on
the concatenation of the enlarged maps, with BatchNorm before they are enlarged.

Different from DINOv3's: images are not cropped or flipped, since maps are computed once, and the loss is at the finest
map's resolution. The rate is chosen on training images that no head was trained on; the test split chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.evaluation.maps import Maps
from mixtransfer.evaluation.records import percentages
from mixtransfer.layers.upsampling import upsampling_weights
from mixtransfer.progress import progress_line

__all__ = [
    "RATES",
    "Counts",
    "Heads",
    "Recipe",
    "batches",
    "best_class",
    "chosen_rates",
    "count",
    "enlarged",
    "train_heads",
]

#: Learning rates that are trained at once.
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1)
#: BatchNorm's constant and the share of a batch in its running statistics, as torch has them.
EPSILON, MOMENTUM = 1e-5, 0.1
VOID = 255


@dataclass(frozen=True)
class Recipe:
    """The training of heads.

    Attributes:
        rates: of AdamW, falling linearly to 0.
        seeds: of the initial weights and the order of images, which is that of mmengine's ``DefaultSampler``.
        iterations, batch: how many steps of how many images.
        decay: AdamW's weight decay.
        holdout: one in so many training images is held out to choose the rate.
    """

    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = (0,)
    iterations: int = 150
    batch: int = 8
    decay: float = 1e-3
    holdout: int = 8


class Heads(nn.Module):
    """Linear heads on maps, for every learning rate and seed.

    Heads that are trained with one rate share a group of parameters, each (seeds, ...). Running statistics depend on
    the seed alone, since heads of one seed see the same images.

    Args:
        channels: of each map.
        classes: K.
        recipe: rates and seeds.
    """

    def __init__(self, channels: Sequence[int], classes: int, recipe: Recipe):
        super().__init__()
        self.channels, self.classes, self.recipe = tuple(channels), classes, recipe
        every = tuple(range(len(channels)))
        #: The maps that each kind of head reads.
        self.selections = [(k,) for k in every] + ([every] if len(every) > 1 else [])
        self.groups = nn.ModuleList(
            nn.ParameterDict(
                {
                    f"{number}_{k}_{name}": nn.Parameter(value)
                    for number, selection in enumerate(self.selections)
                    for k in selection
                    for name, value in self._initial(selection, k).items()
                }
            )
            for _ in recipe.rates
        )
        for k, width in enumerate(channels):
            self.register_buffer(f"mean_{k}", torch.zeros(len(recipe.seeds), width))
            self.register_buffer(f"var_{k}", torch.ones(len(recipe.seeds), width))

    def _initial(self, selection: tuple[int, ...], k: int) -> dict[str, Tensor]:
        weights = []
        for seed in self.recipe.seeds:
            generator = torch.Generator().manual_seed(seed)
            whole = torch.randn(self.classes, sum(self.channels), generator=generator) * 0.01
            start = sum(self.channels[:k])
            weights.append(whole[:, start : start + self.channels[k]])
        shape = len(self.recipe.seeds), self.channels[k]
        found = {"gamma": torch.ones(shape), "beta": torch.zeros(shape), "weight": torch.stack(weights)}
        # One bias a head is enough.
        return found | ({"bias": torch.zeros(shape[0], self.classes)} if k == selection[0] else {})

    def _stacked(self, number: int, k: int, name: str, s: int) -> Tensor:
        return torch.stack([group[f"{number}_{k}_{name}"][s] for group in self.groups])

    def forward(self, maps: Sequence[Tensor], s: int) -> Iterator[Tensor]:
        """Yield the logits (B, rates, K, H, W) of each of ``selections`` for the seed of place ``s``.

        Those of one map have its size, those of several maps that of the finest.

        Args:
            maps: (B, C, h, w) each, the first one the finest.
            s: place of the seed.
        """
        normed = [self._normed(x, k, s) for k, x in enumerate(maps)]
        finest = maps[0].shape[-2:]
        for number, selection in enumerate(self.selections):
            total: Any = 0
            for k in selection:
                answer = self._answer(normed[k], number, k, s)
                total = total + (enlarged(answer, finest) if len(selection) > 1 else answer)
            yield total.unflatten(1, (len(self.recipe.rates), self.classes))

    def _normed(self, x: Tensor, k: int, s: int) -> Tensor:
        mean, var = getattr(self, f"mean_{k}")[s], getattr(self, f"var_{k}")[s]
        # The rows of the buffers are views, which BatchNorm updates.
        return F.batch_norm(x, mean, var, training=self.training, momentum=MOMENTUM, eps=EPSILON)

    def _answer(self, x: Tensor, number: int, k: int, s: int) -> Tensor:
        weight, gamma, beta = (self._stacked(number, k, name, s) for name in ("weight", "gamma", "beta"))
        bias = torch.einsum("rkc,rc->rk", weight, beta)
        if k == self.selections[number][0]:
            bias = bias + self._stacked(number, k, "bias", s)
        return F.conv2d(x, (weight * gamma[:, None]).flatten(0, 1)[..., None, None], bias.flatten())


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (..., h, w) enlarged to a size (H, W), bilinearly as ``F.interpolate`` does it.

    Two products of matrices, which many channels go through faster than through ``F.interpolate``, above all backward.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    rows, columns = (
        upsampling_weights(int(now), int(then), False, torch.float32, x.device).to(x.dtype)
        for now, then in zip(x.shape[-2:], size, strict=True)
    )
    return rows @ (x @ columns.T)


def batches(seed: int, count: int, size: int, iterations: int) -> Iterator[Tensor]:
    """Yield the places of each step's images, in the order of mmengine's ``DefaultSampler``, without rests."""
    done = epoch = 0
    while done < iterations:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
        for batch in order.split(size):
            if len(batch) == min(size, count) and done < iterations:
                done += 1
                yield batch
        epoch += 1


def train_heads(heads: Heads, maps: Maps, places: Sequence[int], device: str = "cpu") -> list[float]:
    """Train heads on the images of ``places``; return the mean loss of the heads in every step."""
    recipe = heads.recipe
    groups: list[dict[str, Any]] = [
        {"params": list(group.parameters()), "lr": rate} for group, rate in zip(heads.groups, recipe.rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / recipe.iterations)
    order = [batches(seed, len(places), recipe.batch, recipe.iterations) for seed in recipe.seeds]
    progress, losses = progress_line("training heads"), []
    heads.train()
    for step in range(recipe.iterations):
        total = torch.zeros((), device=device)
        for s, chosen in enumerate(order):
            total = total + _loss(heads, maps, [places[k] for k in next(chosen).tolist()], s, device)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
        count = len(recipe.seeds) * len(recipe.rates) * len(heads.selections)
        losses.append(float(total.detach()) / count)
        progress(step + 1, recipe.iterations)
    return losses


def _loss(heads: Heads, maps: Maps, places: Sequence[int], s: int, device: str) -> Tensor:
    """Return the sum over heads of the mean loss of a batch's labeled positions."""
    inputs, labels = maps.batch(places, device)
    valid = (labels != VOID).sum().clamp(min=1)
    wanted = labels[:, None].expand(-1, len(heads.recipe.rates), -1, -1).flatten(0, 1)
    total = torch.zeros((), device=device)
    for logits in heads(inputs, s):
        flat = enlarged(logits, labels.shape[-2:]).flatten(0, 1)
        total = total + F.cross_entropy(flat, wanted, ignore_index=VOID, reduction="sum") / valid
    return total


@dataclass
class Counts:
    """Pixels of every head: (selections, rates, seeds, K, 3), [right, predicted, labeled]; image by image of some."""

    total: np.ndarray
    images: list[np.ndarray] = field(default_factory=list)


def best_class(logits: Tensor) -> Tensor:
    """Return the first class with the highest of logits (K, H, W), (H, W) uint8.

    One pass a class over values that lie side by side; ``argmax`` jumps from class to class at every position.
    """
    highest, found = logits[0].clone(), torch.zeros(logits.shape[1:], dtype=torch.uint8, device=logits.device)
    for k, values in enumerate(logits[1:], 1):
        found.masked_fill_(values > highest, k)
        torch.maximum(highest, values, out=highest)
    return found


@torch.no_grad()
def count(heads: Heads, maps: Maps, places: Sequence[int], device: str = "cpu", kept: int | None = None) -> Counts:
    """Count the pixels of images that each head gets right, at the resolution of the labels.

    Args:
        heads, maps, places: what, and on which images.
        device: where.
        kept: the place of the rate whose heads on all maps of the first seed are counted image by image.
    """
    heads.eval()
    recipe, classes = heads.recipe, heads.classes
    found = Counts(np.zeros((len(heads.selections), len(recipe.rates), len(recipe.seeds), classes, 3), np.int64))
    progress = progress_line("measuring heads")
    for number, place in enumerate(places):
        inputs, _ = maps.batch([place], device)
        labels = torch.from_numpy(maps.labels(place).astype(np.int64)).to(device)
        # Void has a row of its own, which is not read.
        start = labels.clamp(max=classes) * classes
        for s in range(len(recipe.seeds)):
            for j, logits in enumerate(heads(inputs, s)):
                for r, answer in enumerate(logits[0]):
                    pairs = start + best_class(enlarged(answer, labels.shape))
                    table = torch.bincount(pairs.flatten(), minlength=(classes + 1) * classes).view(-1, classes)[:-1]
                    rows = torch.stack([table.diagonal(), table.sum(0), table.sum(1)], 1).cpu().numpy()
                    found.total[j, r, s] += rows
                    if r == kept and s == 0 and j == len(heads.selections) - 1:
                        found.images.append(rows)
        progress(number + 1, len(places))
    return found


def chosen_rates(held_out: Counts) -> np.ndarray:
    """Return the place of the rate with the best mIoU on images held out: (selections, seeds)."""
    scores = np.array([[[percentages(rows)["mIoU"] for rows in seeds] for seeds in rates] for rates in held_out.total])
    return scores.argmax(1)
