"""mmpretrain beside transformers 5: its multimodal models, which cannot be imported there, are left out."""

from __future__ import annotations

import importlib
import importlib.metadata

__all__ = ["install"]


def install() -> None:
    """Make ``mmpretrain.models``, and so mmdet and mmseg, importable whatever transformers is installed.

    mmpretrain 1.3 imports its multimodal models wherever it finds transformers 4.28 or newer, and fails with release 5,
    which no longer has what they use. Nothing changes beside older releases.
    """
    if _release("transformers") >= 5:
        importlib.import_module("mmpretrain.utils.dependency").WITH_MULTIMODAL = False


def _release(distribution: str) -> int:
    try:
        return int(importlib.metadata.version(distribution).partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0
