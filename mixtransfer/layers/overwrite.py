"""Writing a result over its operand, which saves a tensor, unless a forward hook could have kept that operand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["overwriting_allowed", "unhooked"]

_allowed = False


def overwriting_allowed() -> bool:
    """Return whether an operand that its caller made, and nobody else reads, may take the result."""
    return _allowed


@contextmanager
def unhooked(network: nn.Module) -> Iterator[None]:
    """Allow overwriting inside the block if no forward hook sees what the modules of ``network`` return.

    Outside of such a block nothing is overwritten: a block or a layer that is run alone may be probed by any means.
    """
    global _allowed
    before = _allowed
    _allowed = not torch_module._global_forward_hooks and not any(m._forward_hooks for m in network.modules())
    try:
        yield
    finally:
        _allowed = before
