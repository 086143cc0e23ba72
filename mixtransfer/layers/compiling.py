"""Instructions to torch.compile and to tracers about our functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["constant_in_graphs", "is_traceable", "traceable"]

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
    """Return whether :func:`traceable` is entered."""
    return _state["traceable"]


def constant_in_graphs(function: F) -> F:
    """Mark a function whose result a compiled graph takes as a constant.

    It is ``torch.compiler.assume_constant_result`` without that one's import of the whole compiler, 0.1 GB and half a
    second for every command.
    """
    function._dynamo_marked_constant = True
    return function
