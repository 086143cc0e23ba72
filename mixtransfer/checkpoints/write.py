"""Writing checkpoint files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
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
from mixtransfer.errors import UserError

__all__ = ["SUFFIXES", "file_hash", "replace_whole", "write_json", "write_weights"]

SUFFIXES = (".safetensors", ".pth", ".pt")
BLOCK = 1 << 20


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


@contextlib.contextmanager
def replace_whole(path: Path, remedy: str = "nothing was left behind") -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; it is flushed to disk and renamed to ``path``, or removed on failure.

    Args:
        path: the file.
        remedy: the end of the error's message.

    Raises:
        UserError: the disk does not take the file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from None


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON; raises a UserError when the disk does not take the file."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with replace_whole(path) as partial:
        # Names of files may hold bytes that are no text; JSON's escape of them is Python's.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
