"""Preparations that run before a module of a library is imported, whoever imports it; they cost nothing until then."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder

__all__ = ["install"]

#: Module -> ours whose ``install`` runs before it is imported.
BEFORE = {
    "mmcv.ops": "mixtransfer.compat.mmcv_ops",
    "mmpretrain.models": "mixtransfer.compat.transformers5",
}


def install() -> None:
    """Make ``mmcv.ops`` and ``mmpretrain.models``, and so mmdet and mmseg, importable from here on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds nothing; is asked before a module is imported."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in BEFORE:
            importlib.import_module(BEFORE[name]).install()
