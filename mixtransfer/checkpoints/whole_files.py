"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtransfer.errors import UserError

__all__ = ["file_hash", "replace_whole", "write_json"]

BLOCK = 1 << 20


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
