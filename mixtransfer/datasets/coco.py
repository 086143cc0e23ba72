"""COCO annotation files: what is wrong in one, what is merely missing, and the sound file that mmdet is given.

mmdet and pycocotools drop instances without an area, stop at fields that only some tools write, number classes by their
place in a file, and take an annotation of id 0 for none. So they never see the file as it is: :func:`sound_content`
fills what is missing and numbers everything anew, in an order that follows from the content and not from identifiers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mixtransfer.errors import UserError

__all__ = [
    "FEW",
    "Findings",
    "category_names",
    "find_problems",
    "image_exists",
    "image_names",
    "read_coco",
    "sound_content",
]

KEYS = ("images", "annotations", "categories")
#: Pixels by which annotated boxes may leave their image: annotation tools round.
SLACK = 1.0
#: No coordinate or area reaches this; not-a-number does not compare.
LARGEST = 1e15
#: Kinds of problems of single instances that mmdet copes with, by leaving the instance out, and the share of a file's
#: annotations that may have them in training. COCO's own files hold a few.
LEFT_OUT = (
    "box without area",
    "box of less than a pixel",
    "box outside its image",
    "polygon without area",
    "polygon outside its image",
)
FEW = 0.001
#: Kinds of problems that only concern masks.
OF_MASKS = (
    "empty segmentation",
    "malformed run lengths",
    "malformed polygon",
    "polygon without area",
    "polygon outside its image",
)


@dataclass
class Findings:
    """Findings of :func:`find_problems`.

    Attributes:
        problems: a kind of problem -> the places that have it.
        notes: what is filled or left out, one line an entry.
        annotations: number of annotations.
        masks: number of annotations with a segmentation.
    """

    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    annotations: int = 0
    masks: int = 0

    def add(self, problem: str, where: str) -> None:
        """Note a problem."""
        self.problems.setdefault(problem, []).append(where)

    def fatal(self, masks: bool) -> dict[str, list[str]]:
        """Return the problems that stop training, of a model with or without masks."""
        return {
            kind: places
            for kind, places in self.problems.items()
            if (masks or kind not in OF_MASKS) and not (kind in LEFT_OUT and len(places) <= FEW * self.annotations)
        }


def read_coco(path: Path, annotated: bool = True) -> dict:
    """Return the content of a COCO annotation file, its three lists present and made of objects.

    Args:
        path: the file.
        annotated: whether annotations are read; COCO's files of test images have none.

    Raises:
        UserError: not JSON, or not COCO's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file ({error}); replace it") from error
    if not annotated and isinstance(content, dict):
        content["annotations"] = []
    for key in KEYS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} has no list {key!r}; it should be a COCO instances file")
        required = {"images": ("id", "file_name"), "categories": ("id", "name")}.get(key, ())
        for entry in content[key]:
            if not isinstance(entry, dict) or any(name not in entry for name in required):
                lacks = f"lacks one of {', '.join(required)}" if required else "is no object"
                raise UserError(f"{path}: an entry of {key!r} {lacks}: {str(entry)[:80]}")
            bad = [name for name in ("id", "image_id", "category_id") if not _is_id(entry.get(name, 0))]
            if bad:
                raise UserError(
                    f"{path}: an entry of {key!r} has no whole number or text as {bad[0]}: {str(entry)[:80]}"
                )
    return content


def _is_id(value: object) -> bool:
    # JSON knows no difference between 1 and 1.0.
    return isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer())


def image_names(content: dict) -> Iterator[str]:
    """Yield the file name of each image."""
    return (str(image["file_name"]) for image in content["images"])


def image_exists(folder: Path, name: str) -> bool:
    """Return whether an image is there; a name that no file can have is not."""
    try:
        return (folder / name).is_file()
    except OSError:
        return False


def category_names(content: dict) -> tuple[str, ...]:
    """Return the names of the categories in the file's order, numbers as text."""
    return tuple(str(category["name"]) for category in content["categories"])


def find_problems(
    content: dict, file: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> Findings:
    """Look at everything in an annotation file that can be judged without its images.

    Args:
        content: from :func:`read_coco`.
        file: how the file is named in places.
        progress: called with annotations done and in all.
    """
    found = Findings(annotations=len(content["annotations"]))
    for key in KEYS:
        if not content[key]:
            found.add(f"no {key}", file)
        _find_repeated(found, file, key, "id", [entry["id"] for entry in content[key] if "id" in entry])
    _find_repeated(found, file, "images", "file name", list(image_names(content)))
    _find_repeated(found, file, "categories", "name", list(category_names(content)))
    sizes: dict[Any, tuple] = {}
    for image in content["images"]:
        name = PurePosixPath(str(image["file_name"]))
        if name.is_absolute() or ".." in name.parts:
            found.add(
                "file name that is not inside the image folder", f"{file}: {name}; write it relative to the folder"
            )
        size = image.get("height"), image.get("width")
        sizes[image["id"]] = size
        if size != (None, None) and not all(isinstance(x, int) and x > 0 for x in size):
            found.add("image without a size", f"{file}: {name}: height and width are {size[0]!r} and {size[1]!r}")
            sizes[image["id"]] = (None, None)
    names = {category["id"] for category in content["categories"]}
    with_masks = any(annotation.get("segmentation") for annotation in content["annotations"])
    filled: dict[str, int] = {}
    for number, annotation in enumerate(content["annotations"]):
        where = f"{file}: annotation {annotation.get('id', f'number {number}')}"
        _check_annotation(found, where, annotation, sizes, names, with_masks)
        area = annotation.get("area")
        missing = [key for key in ("id", "iscrowd", "bbox") if annotation.get(key) is None]
        missing += ["area"] * (area is None or (_numbers([area]) and area <= 0))
        missing += ["ignore"] * bool(annotation.get("ignore"))
        missing += ["left"] * bool(annotation.get("ignore") or annotation.get("iscrowd"))
        for key in missing:
            filled[key] = filled.get(key, 0) + 1
        if number % 4096 == 0:
            progress(number + 1, len(content["annotations"]))
    notes = {
        "id": "without id: numbered",
        "iscrowd": "without iscrowd: taken for 0",
        "area": "without area, or with one of 0: computed from mask or box",
        "bbox": "without bbox: computed from the mask",
        "ignore": "marked 'ignore': left out of training, as mmdet does",
    }
    found.notes += [f"{file}: {filled[key]} annotations {text}" for key, text in notes.items() if key in filled]
    unsized = sum(size == (None, None) for size in sizes.values())
    if unsized and "image without a size" not in found.problems:
        found.notes.append(f"{file}: {unsized} images without height and width: read from the image files")
    if filled.get("left", 0) == found.annotations > 0:
        found.add("no instance to train on", f"{file}: all are crowds or marked 'ignore'")
    if content["annotations"] and not with_masks:
        found.notes.append(f"{file}: no masks; a model with a mask head cannot be trained or measured on it")
    return found


def _find_repeated(found: Findings, file: str, key: str, kind: str, values: list) -> None:
    seen = set()
    for value in values:
        if value in seen:
            found.add(f"{kind} used twice in {key}", f"{file}: {value}")
        seen.add(value)


def _check_annotation(
    found: Findings, where: str, annotation: dict, sizes: dict, categories: set, with_masks: bool
) -> None:
    if annotation.get("category_id") not in categories:
        found.add("unknown category", f"{where}: category {annotation.get('category_id')}")
    if annotation.get("image_id") not in sizes:
        found.add("annotation of an image that is not listed", f"{where}: image {annotation.get('image_id')}")
        return
    height, width = sizes[annotation["image_id"]]
    if annotation.get("iscrowd") not in (None, 0, 1):
        found.add("iscrowd that is neither 0 nor 1", f"{where}: {str(annotation['iscrowd'])[:40]!r}")
    area = annotation.get("area")
    if area is not None and not _numbers([area]):
        found.add("area that is no number", f"{where}: {str(area)[:40]!r}")
    shape = annotation.get("segmentation")
    found.masks += bool(shape)
    if problem := shape and _shape_problem(shape, height, width):
        found.add(problem[0], f"{where}: {problem[1]}" if problem[1] else where)
    elif with_masks and not shape:
        found.add("empty segmentation", where)
    box = annotation.get("bbox")
    if box is None and shape and not problem:
        return
    if not _numbers(box) or len(box) != 4:
        found.add("malformed box", f"{where}: {str(box)[:60]}")
    elif box[2] <= 0 or box[3] <= 0:
        found.add("box without area", f"{where}: {box}")
    elif box[2] < 1 or box[3] < 1:
        found.add("box of less than a pixel", f"{where}: {box}; coordinates are pixels, and mmdet leaves it out")
    elif height is not None and (
        min(box[:2]) < -SLACK or box[0] + box[2] > width + SLACK or box[1] + box[3] > height + SLACK
    ):
        found.add("box outside its image", f"{where}: {box} in {height}x{width}")


def _shape_problem(shape: object, height: int | None, width: int | None) -> tuple[str, str] | None:
    """The kind of problem that a segmentation has, and what it holds."""
    if isinstance(shape, dict):
        kind, size, counts = "malformed run lengths", shape.get("size"), _run_lengths(shape.get("counts"))
        if not (_numbers(size) and len(size) == 2):
            return kind, f"size {str(size)[:40]}"
        if height is not None and size != [height, width]:
            return kind, f"size {size} in {height}x{width}"
        if counts is None or sum(counts) != size[0] * size[1]:
            total = "no run lengths" if counts is None else f"they add up to {sum(counts)}"
            return kind, f"{total}, not to {size[0]}x{size[1]}"
        return None if sum(counts[1::2]) else (kind, "no pixel is set")
    if not isinstance(shape, list) or any(not _numbers(p) or len(p) < 6 or len(p) % 2 for p in shape):
        return "malformed polygon", "no list of polygons, each of three or more points x, y"
    if sum(map(_polygon_area, shape)) == 0:
        return "polygon without area", ""
    if height is not None and any(_leaves(polygon, height, width) for polygon in shape):
        return "polygon outside its image", ""
    return None


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < LARGEST for x in value
    )


def _run_lengths(counts: object) -> list[int] | None:
    """Return run lengths, unpacked from COCO's text if need be; None where they are malformed.

    The text holds each number in groups of 5 bits from the lowest, a sixth bit says that more follow, and from the
    fourth number on the difference to the last but one (pycocotools, maskApi.c, rleFrString).
    """
    if isinstance(counts, str):
        lengths, value, shift = [], 0, 0
        for letter in counts:
            bits = ord(letter) - 48
            if not 0 <= bits < 64 or shift > 60:
                return None
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                value -= (1 << shift) if bits & 16 else 0
                lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
                value = shift = 0
        counts = None if shift else lengths
    if not isinstance(counts, list) or not counts or not all(type(n) is int and n >= 0 for n in counts):
        return None
    return counts


def _polygon_area(polygon: Sequence[float]) -> float:
    x, y = polygon[0::2], polygon[1::2]
    return abs(math.fsum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def _leaves(polygon: list[float], height: int, width: int) -> bool:
    xs, ys = polygon[0::2], polygon[1::2]
    return min(*xs, *ys) < -SLACK or max(xs) > width + SLACK or max(ys) > height + SLACK


def sound_content(
    content: dict, classes: Sequence[str], masks: bool = True, sizes: dict[str, tuple[int, int]] | None = None
) -> dict:
    """Return a file's content as mmdet and pycocotools need it; ``content`` must have passed :func:`find_problems`.

    Images come in the order of their names, annotations by image, class and box, categories in the order of
    ``classes`` (those that the file lacks included, others behind them), each numbered from 1.

    Args:
        content: from :func:`read_coco`.
        classes: names in the order of a model's outputs.
        masks: keep the segmentations; a model without masks is not told that some are malformed.
        sizes: (height, width) of the images whose entry has none, by file name.
    """
    names = [*classes, *sorted(set(category_names(content)) - set(classes))]
    numbers = {name: number for number, name in enumerate(names, 1)}
    category_ids = {category["id"]: numbers[str(category["name"])] for category in content["categories"]}
    images, image_ids = [], {}
    for number, image in enumerate(sorted(content["images"], key=lambda entry: str(entry["file_name"])), 1):
        image_ids[image["id"]] = number
        name = str(image["file_name"])
        height, width = (sizes or {}).get(name) or (image["height"], image["width"])
        images.append({**image, "id": number, "file_name": name, "height": height, "width": width})
    by_id = {image["id"]: image for image in images}
    annotations = []
    for annotation in content["annotations"]:
        if annotation.get("image_id") in image_ids and annotation.get("category_id") in category_ids:
            image = by_id[image_ids[annotation["image_id"]]]
            filled = _filled(annotation, image["height"], masks)
            filled.update(image_id=image["id"], category_id=category_ids[annotation["category_id"]])
            annotations.append(filled)
    annotations.sort(key=lambda a: (a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"]))
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _filled(annotation: dict, height: int, masks: bool) -> dict:
    filled = {**annotation, "iscrowd": int(annotation.get("iscrowd") or 0)}
    shape = annotation.get("segmentation")
    if annotation.get("bbox") is None:
        filled["bbox"] = _box_of(shape, height)
    if not masks:
        filled.pop("segmentation", None)
        shape = None
    if not (annotation.get("area") or 0) > 0:
        filled["area"] = _area_of(shape) if shape else float(filled["bbox"][2] * filled["bbox"][3])
    return filled


def _area_of(shape: dict | list) -> float:
    """Pixels of run lengths, or the area inside polygons."""
    if isinstance(shape, dict):
        return float(sum(_run_lengths(shape["counts"])[1::2]))
    return sum(map(_polygon_area, shape))


def _box_of(shape: dict | list, height: int) -> list[float]:
    """The smallest box (x, y, width, height) around a mask."""
    if isinstance(shape, dict):
        # Run lengths go down the columns.
        ends = np.cumsum(_run_lengths(shape["counts"]))
        pixels = np.concatenate([np.arange(a, b) for a, b in zip(ends[0::2], ends[1::2], strict=False)])
        x, y = pixels // height, pixels % height
        return [float(v) for v in (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)]
    x, y = np.concatenate([p[0::2] for p in shape]), np.concatenate([p[1::2] for p in shape])
    return [float(v) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))]
