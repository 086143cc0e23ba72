"""Answers of a model about one image, as arrays and named classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement

from mixtransfer.errors import UserError

__all__ = ["Classification", "Detections", "Prediction", "Segmentation", "as_prediction"]


@dataclass(frozen=True)
class Prediction:
    """The answer about one image.

    Attributes:
        size: the image's (height, width) in pixels, as it is displayed.
        classes: names of all classes, in the order of the model's outputs.
    """

    size: tuple[int, int]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Segmentation(Prediction):
    """The class of each pixel.

    Attributes:
        labels: indices into ``classes``, (H, W) uint8, or uint16 of more than 256 classes.
    """

    labels: np.ndarray

    def shares(self) -> dict[str, float]:
        """Return the share of the pixels that each class which occurs has, largest first."""
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.classes))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        return {self.classes[k]: float(counts[k] / self.labels.size) for k in order}


@dataclass(frozen=True)
class Detections(Prediction):
    """Instances, surest first.

    Attributes:
        boxes: (N, 4) float32: left, top, right, bottom, in pixels of the image.
        labels: (N,) int64, indices into ``classes``.
        scores: (N,) float32, from 0 to 1.
        masks: (N, H, W) bool, or None of a detector without masks.
        mask_scores: (N,) float32 of a detector that scores masks by themselves, or None.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None
    mask_scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[tuple[str, float, tuple[float, ...]]]:
        """Yield class name, score and box of each instance."""
        for label, score, box in zip(self.labels, self.scores, self.boxes, strict=True):
            yield self.classes[label], float(score), tuple(map(float, box))

    def above(self, score: float) -> Detections:
        """Return the instances with at least this score."""
        kept = self.scores >= score
        parts = {name: getattr(self, name) for name in ("boxes", "labels", "scores", "masks", "mask_scores")}
        return Detections(
            self.size, self.classes, **{name: None if part is None else part[kept] for name, part in parts.items()}
        )


@dataclass(frozen=True)
class Classification(Prediction):
    """The class of an image.

    Attributes:
        scores: (K,) float32, what the model gives each class; they sum to one where it ends in a softmax.
    """

    scores: np.ndarray

    @property
    def name(self) -> str:
        """The class with the highest score."""
        return self.classes[int(self.scores.argmax())]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the names and scores of the surest classes."""
        return [(self.classes[k], float(self.scores[k])) for k in np.argsort(-self.scores, kind="stable")[:count]]


def as_prediction(
    sample: BaseDataElement, size: tuple[int, int], classes: tuple[str, ...], model: str
) -> Segmentation | Detections | Classification:
    """Return a library's answer about an image of (height, width) as one of ours.

    Args:
        sample: the answer.
        size: of the image.
        classes: names of all classes, or none.
        model: how its checkpoint is named in messages.

    Raises:
        UserError: the model answers in another way, or with classes beyond the named ones.
    """
    answer: Any = sample

    def named(count: int) -> tuple[str, ...]:
        if classes and count > len(classes):
            raise UserError(f"{model}: names {len(classes)} classes, and answers with number {count}")
        return classes or tuple(f"class_{k}" for k in range(count))

    if "pred_sem_seg" in sample:
        labels = answer.pred_sem_seg.data[0].cpu().numpy()
        classes = named(int(labels.max()) + 1)
        return Segmentation(size, classes, labels.astype(np.uint8 if len(classes) <= 256 else np.uint16))
    if "pred_instances" in sample:
        found = answer.pred_instances
        scores = found.scores.cpu().numpy().astype(np.float32)
        order = np.argsort(-scores, kind="stable")

        def part(name: str, kind: Any) -> np.ndarray | None:
            return found[name].cpu().numpy()[order].astype(kind) if name in found else None

        labels = part("labels", np.int64)
        classes = named(int(labels.max(initial=0)) + 1)
        masks, rescored = part("masks", bool), part("mask_scores", np.float32)
        return Detections(size, classes, part("bboxes", np.float32), labels, scores[order], masks, rescored)
    if "pred_score" in sample:
        scores = answer.pred_score.cpu().numpy().astype(np.float32)
        classes = named(len(scores))
        if len(classes) != len(scores):
            raise UserError(f"{model}: names {len(classes)} classes, and answers about {len(scores)}")
        return Classification(size, classes, scores)
    raise UserError(f"{model} gives no label map, instances or scores of classes")
