"""Telling timm's networks that no family here has from their names and shapes, without torch and without timm.

``timm_names.json`` beside this file holds a digest of every network of timm, made by
``python -m mixtransfer.checkpoints.index``. A classifier's head and tables that follow the size of images are left out
of the digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["TIMM_INDEX", "digest", "use_of", "variants_of"]

TIMM_INDEX = Path(__file__).with_name("timm_names.json")
#: Entries that differ between files of one network.
LOOSE = re.compile(
    r"(head|heads|fc|classifier|head_dist|last_linear|pre_logits|fc_norm)(\..+)?"
    r"|(.+\.)?(\w*pos_embed\w*|rel_pos\w*|relative_\w+|attn_mask|num_batches_tracked|attention_bias\w*)(\..+)?"
)


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the digest of named shapes."""
    lines = sorted(f"{key} {shape}" for key, shape in shapes.items() if not LOOSE.fullmatch(key))
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()[:12]


def variants_of(entries: Mapping[str, Any]) -> list[str]:
    """Return the networks of timm that have these entries, by timm's names; those of equal shapes are all there.

    Args:
        entries: name -> anything with a ``shape``, without container and prefix.
    """
    return _index().get(digest({key: tuple(value.shape) for key, value in entries.items()}), [])


def use_of(variants: list[str], file: str) -> str:
    """Return how a model starts from a file of one of timm's networks."""
    return (
        f"it keeps its names and needs no conversion: mixtransfer train upernet_timm --arch timm/{variants[0]}"
        f" --cfg-options model.backbone.init_cfg.checkpoint={file}, or mask_rcnn_timm, and those ending in _vit for"
        " plain ViTs"
    )


@cache
def _index() -> dict[str, list[str]]:
    return json.loads(TIMM_INDEX.read_text(encoding="utf-8"))
