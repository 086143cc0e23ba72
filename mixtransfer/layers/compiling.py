"""Instructions to torch.compile and to tracers about our functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["constant_in_graphs", "is_traceable", "plain", "traceable"]

F = TypeVar("F", bound=Callable)
_state = {"traceable": False}


@contextmanager
def traceable() -> Iterator[None]:
    """Compute inside the block with operations that a trace can hold for any number of images, if more slowly."""
    before, _state["traceable"] = _state["traceable"], True
    try:
        yield
    finally:
        _state["traceable"] = before


def is_traceable() -> bool:
    """Return whether :func:`traceable` is entered, or ``torch.jit.trace`` or ``torch.export`` is at work."""
    # The function of torch came with 2.7.
    return _state["traceable"] or torch.jit.is_tracing() or getattr(torch.compiler, "is_exporting", bool)()


def plain(value: Any) -> Any:
    """Return a size, or a tuple or dataclass of sizes, as integers: ``torch.jit.trace`` counts in tensors.

    Those are no keys, and float32 where they are multiplied by a share. The trace holds for this size only.
    """
    if isinstance(value, Tensor):
        return int(value)
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(plain(getattr(value, field.name)) for field in fields(value)))
    return value


def constant_in_graphs(function: F) -> F:
    """Mark a function whose result a compiled graph takes as a constant.

    It is ``torch.compiler.assume_constant_result`` without that one's import of the whole compiler, 0.1 GB and half a
    second for every command.
    """
    function._dynamo_marked_constant = True
    return function
