"""Proof that converted weights work: a strict load, a finite answer, the way back, and the other library's network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.checkpoints.account import HEAD, some
from mixtransfer.errors import UserError

__all__ = ["build_without_values", "fixed_images", "largest_difference", "nonfinite", "run"]

TOLERANCE = 1e-4


class _NoInit(TorchFunctionMode):
    """Skip what fills parameters with random values: each is replaced by the checkpoint's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return function(*args, **(kwargs or {}))


@contextmanager
def build_without_values():
    """Build networks inside whose parameters have no values yet; buffers have theirs."""
    with _NoInit():
        yield


def fixed_images(backbone: Backbone, size: tuple[int, int], channels: int) -> Tensor:
    """Return the images (1, channels, H, W) that every proof runs on: standard normal, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, *size, generator=generator)


def run(backbone: Backbone, state: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, ...]:
    """Load the entries strictly and return what the network answers: logits, the embedding, or the dense maps.

    The entries become the backbone's own parameters, without a copy where they are float32 already.
    """
    own = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    backbone.load_state_dict({key: value for key, value in own.items() if key not in HEAD}, assign=True)
    backbone.eval()
    with torch.inference_mode():
        if not backbone.with_embedding:
            return backbone(images)
        vector = backbone.embed(images)
        return (F.linear(vector, *(own[key] for key in HEAD)) if HEAD[0] in own else vector,)


def nonfinite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the entries that hold NaN or infinite values."""
    return [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of two answers, relative to the standard deviation of the second."""
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        raise UserError(f"shapes {[tuple(x.shape) for x in ours]} and {[tuple(x.shape) for x in theirs]} differ")
    return max(float((a - b).abs().max() / b.std().clamp(min=1e-12)) for a, b in zip(ours, theirs, strict=True))


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return the entries of ``first`` that ``second`` lacks or holds with other bytes."""
    return [
        key
        for key, value in first.items()
        if key not in second
        or second[key].dtype != value.dtype
        or second[key].shape != value.shape
        or not torch.equal(_bits(second[key]), _bits(value))
    ]


def _bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)
