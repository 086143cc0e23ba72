"""Shared by the cases of ``benchmark speed``: their options, their steps, the check that contestants are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["TOLERANCE", "Options", "evaluation_step", "require_close", "set_mode", "training_step"]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Options:
    """How the cases run.

    Attributes:
        device: where they run.
        batch: images a step; None takes the case's own.
        size: side of the images in pixels; None takes the case's own.
        dtype: bfloat16 runs under autocast; parameters stay float32.
        compile: run all contestants through ``torch.compile``.
        families: the families that the case ``families`` runs; none: all.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch: int | None = None
    size: int | None = None
    dtype: torch.dtype = torch.float32
    compile: bool = False
    families: tuple[str, ...] = ()

    def shapes(self, *defaults: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (batch, size) pairs to run: the case's own where nothing was chosen."""
        return list(dict.fromkeys((self.batch or batch, self.size or size) for batch, size in defaults))

    def autocast(self):
        """Return the context that a step runs in."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def compiled(self, function: Callable) -> Callable:
        """Return ``function``, compiled if the options say so."""
        return torch.compile(function) if self.compile else function

    def max_ratio(self, **max_ratio: float) -> dict[str, float]:
        """Return the accepted ratios, which hold for float32 on CPU without compilation; none elsewhere."""
        plain = self.device.type == "cpu" and self.dtype == torch.float32 and not self.compile
        return max_ratio if plain else {}


def set_mode(nets: Mapping[str, nn.Module], training: bool) -> None:
    """Put all networks into training or evaluation mode."""
    for net in nets.values():
        net.train(training)


def require_close(name: str, what: str, got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Stop unless two tensors agree to ``TOLERANCE`` of the largest value.

    Raises:
        RuntimeError: they do not.
    """
    allowed = TOLERANCE[dtype] * want.abs().max().item()
    error = (got - want).abs().max().item()
    if not error <= allowed:
        raise RuntimeError(f"{name} differs from ours in {what} by {error:.2g}: times would not be comparable")


def evaluation_step(call: Callable, images: Tensor, options: Options) -> Callable[[], None]:
    """Return a step that runs a network on images without gradient."""

    def step() -> None:
        with torch.no_grad(), options.autocast():
            call(images)

    return step


def training_step(net: nn.Module, call: Callable, images: Tensor, options: Options) -> Callable[[], None]:
    """Return a step that runs ``call``, which runs ``net``, and its backward pass from a gradient of each map."""
    with torch.no_grad(), options.autocast():
        gradients = [torch.randn_like(x) for x in call(images)]

    def step() -> None:
        net.zero_grad()
        with options.autocast():
            maps = call(images)
        torch.autograd.backward(maps, gradients)

    return step
