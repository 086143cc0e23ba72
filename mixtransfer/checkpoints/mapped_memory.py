"""Reading mapped files without keeping them in memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ReleasePages"]


class ReleasePages(TorchFunctionMode):
    """While entered, pages of a mapped file are released after the operation that read them; others read them again.

    So a network whose weights lie in a file takes the memory of a layer, not of all weights. Nothing may have written
    to the mapped values, as that would be lost. Where the system has no list of mappings (``/proc``) memory is kept.

    Args:
        path: a file.
        content: what ``read_checkpoint(mapped=True)`` made of it.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]):
        super().__init__()
        # An earlier reading of the file may still be mapped: once it ends, other values may lie at its addresses.
        # This reading's stays as long as its values do.
        self.content = content
        starts = {value.data_ptr() for value in _tensors(content)}
        self.spans = [span for span in _spans(path.resolve()) if any(span[0] <= start < span[1] for start in starts)]
        self.advise: Any = ctypes.CDLL(None).madvise if self.spans else None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.release()
        return result

    def release(self) -> None:
        """Release the pages that were read so far."""
        for start, stop in self.spans:
            self.advise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def _tensors(content: Any) -> Iterator[Tensor]:
    below, seen = [content], set()
    while below:
        value = below.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:  # a trusted file's may hold itself
            seen.add(id(value))
            below += value.values() if isinstance(value, Mapping) else value


def _spans(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the addresses (start, stop) at which the file is mapped into this process."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.exists() else ():
        span, *_, name = line.split(maxsplit=5)
        if name == str(path):
            start, stop = span.split("-")
            yield int(start, 16), int(stop, 16)
