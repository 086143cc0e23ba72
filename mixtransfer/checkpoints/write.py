"""Writing weights as safetensors or as torch does."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mixtransfer.checkpoints.headers import SAFETENSORS
from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.errors import UserError

__all__ = ["SUFFIXES", "write_weights"]

SUFFIXES = (".safetensors", ".pth", ".pt")


def write_weights(
    path: Path,
    state: Mapping[str, Tensor],
    note: Mapping[str, str],
    container: str,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Write named tensors as the suffix of ``path`` says; tensors are written one after another, without a copy.

    Args:
        path: the file, ``.safetensors``, ``.pth`` or ``.pt``.
        state: the entries.
        note: what is kept beside them: safetensors metadata, ``"meta"`` in a ``.pth``.
        container: the key that holds the entries in a ``.pth``; empty for a flat file without ``note``.
        after: called after each piece that is written.

    Raises:
        UserError: the file cannot be written; nothing is left behind then.
    """
    with replace_whole(path) as partial, open(partial, "wb") as file:
        stream: Any = _Stream(file, after)
        if path.suffix == ".safetensors":
            _write_safetensors(stream, state, note)
        else:
            compact = {key: _contiguous(value) for key, value in state.items()}
            try:
                torch.save({"meta": dict(note), container: compact} if container else compact, stream)
            except RuntimeError:  # of its zip writer, on a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


@dataclass
class _Stream:
    file: BinaryIO
    after: Callable[[], None]

    def write(self, data: bytes | memoryview) -> int:
        written = self.file.write(data)
        self.after()
        return written

    def flush(self) -> None:
        self.file.flush()


def _write_safetensors(file: _Stream, state: Mapping[str, Tensor], note: Mapping[str, str]) -> None:
    """Write the published layout: header length, JSON header, then the bytes of each tensor without gaps.

    Wider types come first, so that every tensor is aligned to its type.
    """
    names = {kind: name for name, kind in SAFETENSORS.items()}
    order = sorted(state, key=lambda key: (-state[key].element_size(), key))
    header: dict[str, Any] = {"__metadata__": dict(note)} if note else {}
    end = 0
    for key in order:
        value, kind = state[key], str(state[key].dtype).removeprefix("torch.")
        if kind not in names:
            raise UserError(f"{key}: values of type {kind} have no place in a .safetensors file; give a .pth name")
        start, end = end, end + value.numel() * value.element_size()
        header[key] = {"dtype": names[kind], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for key in order:
        for part in _bytes_of(state[key]):
            file.write(part)


def _bytes_of(value: Tensor) -> Iterator[memoryview]:
    flat = _contiguous(value).reshape(-1)
    values: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    yield memoryview(values)


def _contiguous(value: Tensor) -> Tensor:
    """Return a tensor that owns exactly its values, in order, on the host."""
    value = value.detach().cpu().contiguous()
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()
