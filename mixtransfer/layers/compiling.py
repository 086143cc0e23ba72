"""Instructions to torch.compile about our functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["constant_in_graphs"]

F = TypeVar("F", bound=Callable)


def constant_in_graphs(function: F) -> F:
    """Mark a function whose result a compiled graph takes as a constant.

    It is ``torch.compiler.assume_constant_result`` without that one's import of the whole compiler, 0.1 GB and half a
    second for every command.
    """
    function._dynamo_marked_constant = True
    return function
