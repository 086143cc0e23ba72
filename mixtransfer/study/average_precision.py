"""COCO's average precision of images that are drawn with replacement, as that of a set that holds them so often.

An image that is drawn twice stands twice in the set, its objects and its detections; evaluations that take a set of
images for what is drawn forget that, and their intervals are too narrow. Nothing is matched again: which detections are
right is known image by image. Only the rank of detections of one class with equal scores in one image may differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["METRIC", "precision_scores"]

#: Names of metrics that this computes: the kind, and the overlap in percent where there is one.
METRIC = re.compile(r"(?:coco/)?(bbox|segm)_mAP(?:_(50|75))?")
#: Recalls at which precision is read.
RECALLS = np.linspace(0, 1, 101)
#: Numbers that are held at a time.
HELD = 2**22


def precision_scores(
    images: Sequence[Mapping[str, Any]], times: np.ndarray, overlap: float | None = None
) -> np.ndarray:
    """Return the AP, a fraction, in every draw; not-a-number where no object is drawn.

    Args:
        images: entries of :attr:`mixtransfer.evaluation.coco.Precision.images`, one an image.
        times: (draws, images), how often each image is drawn.
        overlap: at which a detection counts; the mean over all by default.
    """
    thresholds = images[0]["thresholds"]
    chosen = [t for t, value in enumerate(thresholds) if overlap is None or abs(value - overlap) < 1e-9]
    total, counted = np.zeros(len(times)), np.zeros(len(times))
    # Equal scores are ranked in the order of the images.
    order = sorted(range(len(images)), key=lambda place: images[place]["place"])
    for name in sorted({name for image in images for name in image["labeled"]}):
        labeled = times @ np.array([image["labeled"].get(name, 0) for image in images])
        rows = [(place, *row) for place in order for row in images[place]["found"].get(name, ())]
        found = np.array(rows, np.float64).reshape(-1, 4)
        found = found[np.argsort(-found[:, 1], kind="stable")]
        places, matched, ignored = (found[:, column].astype(np.int64) for column in (0, 2, 3))
        step = max(1, HELD // max(len(found), 1))
        for start in range(0, len(times), step):
            part = slice(start, start + step)
            drawn = times[part][:, places]
            for t in chosen:
                on = (matched >> t) & 1, (ignored >> t) & 1
                total[part] += _precision(drawn, on[0] & ~on[1], (1 - on[0]) & ~on[1], labeled[part])
        counted += len(chosen) * (labeled > 0)
    with np.errstate(invalid="ignore"):
        return total / counted


def _precision(drawn: np.ndarray, right: np.ndarray, wrong: np.ndarray, labeled: np.ndarray) -> np.ndarray:
    """Return the mean precision (draws,) over recalls, 0 without objects, of detections ranked by their scores.

    Copies of a detection are counted at once: between them precision is not higher than at one of their ends.
    """
    hits, misses = np.cumsum(drawn * right, axis=1), np.cumsum(drawn * wrong, axis=1)
    precision = hits / (hits + misses + np.spacing(1))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    means = np.zeros(len(drawn))
    for number in np.flatnonzero(labeled):
        reached = np.searchsorted(hits[number] / labeled[number], RECALLS, side="left")
        means[number] = highest[number][reached[reached < highest.shape[1]]].sum() / len(RECALLS)
    return means
