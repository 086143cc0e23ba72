"""COCO's average precision of arrays in memory, by hotcoco.

mmdet writes predictions as JSON with Python's encoder and reads them back, and pycocotools matches them in Python.
hotcoco (MIT) takes the columns as they are. Precision and recall are pycocotools' arrays, element by element
(``tests/evaluation/test_coco.py``), with one difference: identifiers do not matter. pycocotools takes an annotation
whose identifier is 0 for one that no prediction found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np

__all__ = ["Precision", "evaluate"]


@dataclass(frozen=True)
class Precision:
    """Counts of COCO's evaluation, −1 where there is no annotation.

    Attributes:
        precision: (T thresholds, R points of recall, K classes, A ranges of areas, M numbers of detections).
        recall: (T, K, A, M), the highest.
        thresholds: the T overlaps.
        numbers: the M numbers of detections an image.
        images: an entry for each of the predictions, see :func:`_matches`.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    numbers: Sequence[int]
    images: Sequence[Mapping[str, Any]] = ()

    def stats(self) -> dict[str, float]:
        """Return the means that mmdet reports, under its names; −1 where nothing is counted.

        As in pycocotools, ``mAP`` is that of 100 detections an image, the others are those of the last number.
        """
        at = {0.5: self.thresholds == 0.5, 0.75: self.thresholds == 0.75}
        hundred = [i for i, number in enumerate(self.numbers) if number == 100]
        return {
            "mAP": _mean(self.precision[:, :, :, 0, hundred]),
            **{f"mAP_{int(100 * t)}": _mean(self.precision[rows][:, :, :, 0, -1]) for t, rows in at.items()},
            **{f"mAP_{name}": _mean(self.precision[:, :, :, area, -1]) for area, name in enumerate("sml", 1)},
            **{f"AR@{number}": _mean(self.recall[:, :, 0, i]) for i, number in enumerate(self.numbers)},
            **{f"AR_{name}@{self.numbers[-1]}": _mean(self.recall[:, :, i, -1]) for i, name in enumerate("sml", 1)},
        }

    def by_class(self) -> list[float]:
        """Return the AP of each class over all thresholds and areas, not-a-number for one without annotations."""
        found = (_mean(self.precision[:, :, k, 0, -1]) for k in range(self.precision.shape[2]))
        return [float("nan") if value == -1 else value for value in found]


def _mean(values: np.ndarray) -> float:
    counted = values[values > -1]
    return float(np.mean(counted)) if counted.size else -1.0


def evaluate(
    truth: Mapping[str, Any],
    categories: Sequence[Any],
    predictions: Sequence[Mapping[str, Any]],
    kind: str,
    numbers: Sequence[int],
    thresholds: Sequence[float],
) -> Precision:
    """Compare predictions with ground truth.

    Args:
        truth: the content of a COCO file.
        categories: identifiers of the classes, in the order of labels; annotations of others are left out.
        predictions: an image each: ``img_id``; ``bboxes`` (N, 4), x1, y1, x2, y2 in pixels; ``scores`` and ``labels``
            (N,); for masks ``masks``, N run lengths, and possibly ``mask_scores`` (N,).
        kind: ``bbox`` or ``segm``.
        numbers: how many of the best detections of an image count, ascending.
        thresholds: the overlaps from which a detection counts.

    Raises:
        ValueError: predictions of an image that the ground truth does not have.
    """
    # Detections of one score are taken in the order of their images; pycocotools sorts those by identifier.
    images = {identity: place for place, identity in enumerate(sorted(image["id"] for image in truth["images"]))}
    if unknown := [item["img_id"] for item in predictions if item["img_id"] not in images]:
        raise ValueError(f"predictions of image {unknown[0]!r}, which the ground truth does not have")
    real = _truth(truth, images, {identity: place for place, identity in enumerate(categories)}, kind)
    run = hotcoco.COCOeval(real, _predicted(real, predictions, images, kind), kind)
    run.params.max_dets = [int(number) for number in numbers]
    run.params.iou_thrs = [float(value) for value in thresholds]
    run.evaluate()
    run.accumulate()
    counts = run.eval
    assert counts is not None
    arrays = (np.asarray(counts[name]) for name in ("precision", "recall"))
    matched = _matches(run.eval_imgs, run.params.area_rng[0], len(images), thresholds)
    found = [matched[images[item["img_id"]]] for item in predictions]
    return Precision(*arrays, np.asarray(thresholds, dtype=float), list(numbers), found)


def _matches(
    compared: Sequence[Mapping[str, Any] | None], area: Any, images: int, thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    """Return what the AP over all areas follows from, image by image.

    ``thresholds`` are the overlaps, ``place`` is the image's in the order of ties; by class, ``labeled`` has the number
    of objects, and ``found`` has the score of each detection and two sets of thresholds, bit by bit: where it has an
    object, and where it does not count.
    """
    shared = [float(value) for value in thresholds]
    entries = [{"thresholds": shared, "place": place, "labeled": {}, "found": {}} for place in range(images)]
    for pair in compared:
        if pair is None or list(pair["aRng"]) != list(area):
            continue
        entry, name = entries[pair["image_id"]], str(pair["category_id"])
        if labeled := sum(not ignored for ignored in pair["gtIgnore"]):
            entry["labeled"][name] = labeled
        if scores := pair["dtScores"]:
            bits = 1 << np.arange(len(shared))
            sets = (bits @ np.asarray(pair[key], dtype=np.int64) for key in ("dtMatched", "dtIgnore"))
            entry["found"][name] = [list(row) for row in zip(scores, *(part.tolist() for part in sets), strict=True)]
    return entries


def _truth(truth: Mapping[str, Any], images: Mapping, categories: Mapping, kind: str) -> hotcoco.COCO:
    """Return the ground truth with places in place of identifiers, in the order of the file."""
    listed = truth.get("annotations", ())
    counted = [item for item in listed if item["category_id"] in categories and item["image_id"] in images]
    return hotcoco.COCO.from_arrays(
        [{**image, "id": images[image["id"]]} for image in truth["images"]],
        [{"id": place, "name": str(place)} for place in categories.values()],
        np.array([images[item["image_id"]] for item in counted], dtype=np.int64),
        np.array([categories[item["category_id"]] for item in counted], dtype=np.int64),
        np.array([item["bbox"] for item in counted], dtype=np.float64).reshape(-1, 4),
        ids=np.arange(1, len(counted) + 1),
        area=np.array([item["area"] for item in counted], dtype=np.float64),
        iscrowd=np.array([bool(item.get("iscrowd", 0)) for item in counted]),
        segmentation=[item["segmentation"] for item in counted] if kind == "segm" else None,
    )


def _predicted(
    real: hotcoco.COCO, predictions: Sequence[Mapping[str, Any]], images: Mapping[Any, int], kind: str
) -> hotcoco.COCO:
    scores = "mask_scores" if kind == "segm" else "scores"
    columns = [
        np.column_stack(
            [
                np.full(len(item["scores"]), images[item["img_id"]], dtype=np.float64),
                boxes := np.asarray(item["bboxes"], dtype=np.float64).reshape(-1, 4)[:, :2],
                np.asarray(item["bboxes"], dtype=np.float64).reshape(-1, 4)[:, 2:] - boxes,
                item.get(scores, item["scores"]),
                item["labels"],
            ]
        )
        for item in predictions
    ]
    table = np.concatenate(columns) if columns else np.zeros((0, 7))
    if kind == "bbox":
        return real.load_res(table)
    masks = [mask for item in predictions for mask in item["masks"]]
    found = real.load_res(table, segmentation=masks)
    if masks:
        # Small, medium and large are said of masks, not of boxes. pycocotools cannot measure more than 255 at once.
        found.update_anns(ids=np.arange(1, len(masks) + 1), area=np.asarray(hotcoco.mask.area(masks), dtype=np.float64))
    return found
