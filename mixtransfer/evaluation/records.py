"""Records of measurements as files: the same run gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixtransfer.checkpoints.whole_files import replace_whole

__all__ = ["SCHEMA", "beside", "percentages", "pixel_counts", "plain", "write_record"]

#: The version of the form of records. Entries are added and never change their meaning.
SCHEMA = 1


def percentages(counts: np.ndarray) -> dict[str, float]:
    """Return mIoU, mAcc and aAcc, in percent at full precision, of pixels counted class by class.

    Args:
        counts: (K, 3), the pixels [right, predicted, labeled] of each class. Classes that neither occur nor are
            predicted have no IoU, those that do not occur no accuracy; means are over the others.
    """
    right, predicted, labeled = counts.astype(np.float64).T
    union = predicted + labeled - right
    return {
        "mIoU": 100 * float(np.mean(right[union > 0] / union[union > 0])),
        "mAcc": 100 * float(np.mean(right[labeled > 0] / labeled[labeled > 0])),
        "aAcc": 100 * float(right.sum() / labeled.sum()),
    }


def pixel_counts(images: Sequence[Mapping[str, Any]], classes: int) -> np.ndarray:
    """Return the pixels (images, K, 3) that :class:`Meter` has counted of a segmentor."""
    counts = np.zeros((len(images), classes, 3), np.int64)
    for number, image in enumerate(images):
        for k, row in image["pixels"].items():
            counts[number, int(k)] = row
    return counts


def beside(out: Path, kind: str) -> Path:
    """Return the name of the file beside a record that holds its "cost", or its "images"."""
    return out.with_name(f"{out.stem}.{kind}.json")


def write_record(path: Path, content: Any, compact: bool = False) -> None:
    """Write plain values as JSON with sorted keys, so that equal content is equal bytes, whole or not at all."""
    style: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, **style)
    with replace_whole(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: numpy's numbers as Python's, not-a-number as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value != value else value
