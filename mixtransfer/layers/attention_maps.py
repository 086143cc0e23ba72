"""Attention of the last block, taken from its own queries and keys while it runs.

Methods that need a share of attention and not the map (TransMix, SMMix) open :func:`watching` around a forward pass. A
backbone starts the watch at its last block; from there on the functions of :mod:`mixtransfer.layers.attention` note
what they were called with, and :meth:`Watch.maps` turns the last notes into maps. The block itself runs fused.

Shapes: B batch, H heads, N queries, M keys, d channels a head, h·w patches, behind a class token where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mixtransfer.errors import UserError

__all__ = ["Note", "Watch", "current_watch", "note", "noting", "watching"]

#: Names of the maps that :meth:`Watch.maps` makes.
MAPS = ("class_attention", "image_attention")


class Note(NamedTuple):
    """One call of an attention, as it was made."""

    q: Tensor
    k: Tensor
    bias: Tensor | None
    mixed: Callable[[Tensor], Tensor] | None

    def attended(self, queries: Tensor | slice) -> Tensor:
        """Return how much some of the queries attend to each key, (B, M), mean over these queries and the heads."""
        with torch.no_grad():
            products = self.q[:, :, queries] * self.q.size(-1) ** -0.5 @ self.k.transpose(2, 3)
            if self.bias is not None:
                products = products + self.bias[:, :, queries]
            if self.mixed is not None:
                products = self.mixed(products)
            wide = torch.promote_types(products.dtype, torch.float32)
            return products.softmax(dim=-1, dtype=wide).mean(dim=(1, 2))


class Watch:
    """Findings of one forward pass beside its embedding.

    Attributes:
        wanted: names of what is looked for.
        on: whether attention is noted; a backbone turns it on at its last block.
        patches: the last attention of more than one query.
        token: the last attention of the class token alone.
        batch: B.
        size: the grid (h, w) of the last patches.
        tokens: the last patches (B, h, w, D) behind the norm of the embedding, if they are wanted.
        places: (B, n) the places in the grid of the patches that took part in the last block; None where all did.
    """

    def __init__(self, wanted: Collection[str]):
        self.wanted = wanted
        self.on = False
        self.patches: Note | None = None
        self.token: Note | None = None
        self.batch, self.size = 0, (0, 0)
        self.tokens: Tensor | None = None
        self.places: Tensor | None = None

    def maps(self, what: str, stride: int) -> dict[str, Tensor]:
        """Return the maps (B, h, w) that ``wanted`` names of ``"class_attention"`` and ``"image_attention"``.

        Without a class token the first is the second: an embedding that is the mean of all patches.

        Args:
            what: name of the network, for messages.
            stride: pixels a side of a patch of the last block.

        Raises:
            UserError: the last block attends inside windows, or to pooled patches, at this size of images.
        """
        wanted = [name for name in MAPS if name in self.wanted]
        if not wanted:
            return {}
        assert self.patches is not None and self.batch, "the last block was not watched"
        q, k = self.patches.q, self.patches.k
        slots, taking_part = self._slots(k)
        if len(q) != self.batch or q.size(2) != k.size(2) or k.size(2) - slots not in (0, 1):
            side = math.isqrt(k.size(2))
            raise UserError(
                f"{what}: its last block attends to {side} × {side} tokens, but its map is {self.size[0]} × "
                f"{self.size[1]}, so that no attention covers the image; train on images of at most {side * stride} × "
                f"{side * stride} pixels"
            )
        first, found = k.size(2) - slots, {}
        if taking_part is not None:
            taking_part = taking_part + first
        patches = slice(first, None) if taking_part is None else taking_part
        for name in wanted:
            if name == "class_attention" and self.token is not None:
                attended = self.token.attended(slice(None))[:, 1:]
            else:
                rows = slice(0, 1) if name == "class_attention" and first else patches
                attended = self.patches.attended(rows)[:, patches]
            if self.places is not None:
                whole = attended.new_zeros(self.batch, self.size[0] * self.size[1])
                attended = whole.scatter(1, self.places, attended)
            found[name] = attended.unflatten(1, self.size)
        return found

    def _slots(self, k: Tensor) -> tuple[int, Tensor | None]:
        """Return how many keys are patches, and, where a padded window holds the map, which of them are its own."""
        height, width = self.size
        if self.places is not None:
            return self.places.size(1), None
        window = math.isqrt(k.size(2))
        if window * window <= height * width or window < max(height, width):
            return height * width, None
        own = torch.arange(window * window, device=k.device).view(window, window)[:height, :width]
        return window * window, own.flatten()


_watch: Watch | None = None


def current_watch() -> Watch | None:
    """Return the watch of the forward pass that is running, if there is one."""
    return _watch


def noting() -> bool:
    """Return whether attention is noted now: then it runs for all samples, whatever stochastic depth drops."""
    return _watch is not None and _watch.on


@contextmanager
def watching(wanted: Collection[str]) -> Iterator[Watch]:
    """Watch the forward pass inside the block for what ``wanted`` names."""
    global _watch
    before, _watch = _watch, Watch(wanted)
    try:
        yield _watch
    finally:
        _watch = before


def note(q: Tensor, k: Tensor, bias: Tensor | None = None, mixed: Callable[[Tensor], Tensor] | None = None) -> None:
    """Note a call of an attention, if one is watched.

    Args:
        q: queries (B, H, N, d).
        k: keys (B, H, M, d).
        bias: what is added to their products, (1 or B, 1 or H, N, M).
        mixed: applied to the products (B, H, N, M) in front of the softmax.
    """
    if _watch is None or not _watch.on:
        return
    made = Note(q.detach(), k.detach(), None if bias is None else bias.detach(), mixed)
    if q.size(2) == 1 and k.size(2) > 1:
        _watch.token = made
    else:
        _watch.patches = made
