"""Tables that follow from sizes: made once, kept as long as all of them together stay within a budget of bytes.

Training at many sizes would otherwise pile up tables that are never asked for again: those of shifted windows for one
batch of two 800 × 1344 images take some 70 MB.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from mixtransfer.layers.compiling import is_traceable, plain

__all__ = ["BUDGET", "kept_bytes", "table"]

F = TypeVar("F", bound=Callable)

#: Bytes that tables may take on all devices together; what a step is working with is kept by its graph.
BUDGET = 256 * 2**20

_kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()


def table(make: F) -> F:
    """Keep what a function of plain values returns, a tensor or a tuple of them, until others need the room."""

    @wraps(make)
    def get(*arguments: Hashable) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return make(*arguments)
        if torch.jit.is_tracing():
            arguments = plain(arguments)
        key = make, *arguments
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key][0]
        if is_traceable():
            # Who traces or exports watches its own thread: it gets tables as constants, without how they are made.
            with ThreadPoolExecutor(1) as elsewhere:
                made = elsewhere.submit(make, *arguments).result()
        else:
            # Tables made under inference_mode could not be saved for a later backward pass.
            with torch.inference_mode(False):
                made = make(*arguments)
        _kept[key] = made, _bytes(made)
        over = kept_bytes() - BUDGET
        while over > 0 and len(_kept) > 1:
            _, (_, freed) = _kept.popitem(last=False)
            over -= freed
        return made

    return cast(F, get)


def kept_bytes() -> int:
    """Return the bytes of all tables that are kept."""
    return sum(size for _, size in _kept.values())


def _bytes(made: Any) -> int:
    if isinstance(made, Tensor):
        return made.nbytes
    return sum(map(_bytes, made)) if isinstance(made, tuple) else 0
