"""Answers as files: masks, COCO's JSON, scores of classes; each under a name of its own, the folders kept."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixtransfer.checkpoints.write import replace_whole
from mixtransfer.errors import UserError
from mixtransfer.inference.model import Answer, Model
from mixtransfer.inference.results import Detections, Segmentation

__all__ = ["PREDICTIONS", "Writer", "output_names"]

#: The file that lists all answers, and that of a classifier as a table.
PREDICTIONS, SCORES = "predictions.json", "scores.csv"


def output_names(files: Sequence[Path], root: Path | None = None) -> dict[Path, str]:
    """Return a name, with folders and without suffix, for what belongs to each file, such that no two are the same.

    The folders below ``root`` stay, by default below the folder that all files share. Where two files differ only in
    suffix or case, or one is named as another's label map, all keep their suffix in the name.
    """
    places = {file: Path(os.path.abspath(file)) for file in files}
    shared = os.path.abspath(root) if root else os.path.commonpath([str(place.parent) for place in places.values()])
    # What belongs to a file elsewhere must not be written elsewhere.
    full = {file: os.path.relpath(place, shared).replace("..", "_") for file, place in places.items()}
    names = {file: str(Path(name).with_suffix("")) for file, name in full.items()}
    # A file system may not tell case apart.
    lower = Counter(name.lower() for name in dict(zip(full.values(), names.values(), strict=True)).values())
    clash = any(count > 1 or f"{name}_labels" in lower for name, count in lower.items())
    return full if clash else names


class Writer:
    """Writes the answers of a model about files into a folder.

    A segmentor's are masks, ``masks/NAME.png``, with the labels of the masks that it was trained on and a palette in
    its colors. ``predictions.json`` has, of a detector, COCO's lists (images, categories, annotations with ``score``;
    masks as run lengths), of a segmentor the classes and their shares of each image, of a classifier every score;
    ``scores.csv`` has these as a table.

    Args:
        folder: where they go.
        model: who answers.
        names: file -> name, from :func:`output_names`.

    Raises:
        UserError: an answer would take the place of an image.
    """

    def __init__(self, folder: Path, model: Model, names: Mapping[Path, str]):
        self.folder, self.model, self.names = folder, model, names
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.failed: list[dict[str, str]] = []
        inputs = {os.path.realpath(file) for file in names}
        for path in [folder / PREDICTIONS, *(self.mask_path(file) for file in names)]:
            if os.path.realpath(path) in inputs:
                raise UserError(f"{path}: is one of the images; give another --out")

    def mask_path(self, file: Path) -> Path:
        """Return where the label map of a file goes."""
        return self.folder / "masks" / f"{self.names[file]}.png"

    def add(self, file: Path, answer: Answer) -> None:
        """Take an answer; a label map is written at once."""
        height, width = answer.size
        image = {"id": len(self.images) + 1, "file_name": str(file), "height": height, "width": width}
        self.images.append(image)
        if isinstance(answer, Segmentation):
            path = self.mask_path(file)
            self._write_mask(answer, path)
            image.update(mask=path.relative_to(self.folder).as_posix(), shares=answer.shares())
        elif isinstance(answer, Detections):
            self.annotations += [
                {"id": len(self.annotations) + k, "image_id": image["id"], **instance}
                for k, instance in enumerate(_instances(answer), 1)
            ]
        else:
            scores = dict(zip(answer.classes, map(float, answer.scores), strict=True))
            image.update({"class": answer.name, "score": scores[answer.name], "scores": scores})

    def fail(self, file: Path, error: UserError) -> None:
        """Note a file that could not be read."""
        self.failed.append({"file_name": str(file), "error": str(error)})

    def close(self) -> list[Path]:
        """Write the lists and return their files."""
        content: dict[str, Any] = {"checkpoint": self.model.name, "task": self.model.task, "images": self.images}
        if self.model.task == "det":
            content["categories"] = [{"id": k, "name": name} for k, name in enumerate(self.model.classes, 1)]
            content["annotations"] = self.annotations
        elif self.model.task == "seg":
            entries = zip(self.model.classes, self.model.values, self.model.palette, strict=True)
            content["classes"] = [
                {"name": name, "label": int(label), "color": list(color)} for name, label, color in entries
            ]
        if self.failed:
            content["failed"] = self.failed
        with replace_whole(self.folder / PREDICTIONS) as partial:
            partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        written = [self.folder / PREDICTIONS]
        if self.model.task == "cls":
            with (
                replace_whole(self.folder / SCORES) as partial,
                open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as out,
            ):
                table = csv.writer(out)
                table.writerow(["file", "class", "score", *self.model.classes])
                for image in self.images:
                    table.writerow([image["file_name"], image["class"], image["score"], *image["scores"].values()])
            written.append(self.folder / SCORES)
        return written

    def _write_mask(self, answer: Segmentation, path: Path) -> None:
        values = self.model.values
        stored = values[answer.labels] if len(values) == len(answer.classes) else answer.labels
        if int(stored.max(initial=0)) > 255:
            with replace_whole(path) as partial:
                Image.fromarray(stored.astype(np.uint16)).save(partial, "png")
            return
        picture = Image.fromarray(stored.astype(np.uint8), mode="P")
        colors = np.zeros((256, 3), np.uint8)
        colors[values] = np.array(self.model.palette, np.uint8).reshape(-1, 3)
        picture.putpalette(colors.reshape(-1).tolist())
        with replace_whole(path) as partial:
            picture.save(partial, "png", optimize=True)


def _instances(answer: Detections) -> list[dict[str, Any]]:
    """Return the instances of an image as COCO has them, without numbers; categories count from 1."""
    from pycocotools import mask as run_lengths

    instances = []
    for k in range(len(answer)):
        left, top, right, bottom = map(float, answer.boxes[k])
        instance: dict[str, Any] = {
            "category_id": int(answer.labels[k]) + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": 0,
            "score": float(answer.scores[k]),
        }
        if answer.masks is not None:
            coded = run_lengths.encode(np.asfortranarray(answer.masks[k].astype(np.uint8)))
            instance["segmentation"] = {"size": list(coded["size"]), "counts": coded["counts"].decode()}
            instance["area"] = float(run_lengths.area(coded))
        if answer.mask_scores is not None:
            instance["mask_score"] = float(answer.mask_scores[k])
        instances.append(instance)
    return instances
