"""Check a dataset folder: every file is opened, every label looked at, every annotation tested.

``check_folder`` never stops at the first problem: it returns all of them, with a table of what is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mixtransfer.datasets.folders import (
    LAYOUTS,
    SCENES,
    TASKS,
    VOID,
    class_folders,
    found_layouts,
    image_files,
    missing_dataset,
    read_class_names,
    read_coco,
)
from mixtransfer.errors import UserError, unknown_name, visible

__all__ = ["Report", "check_folder"]

Progress = Callable[[int, int], None]
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are truncated, damaged or no images."""
SLACK = 1.0
"""Pixels by which annotated boxes may leave their image: annotation tools round."""
SHOWN = 5


@dataclass
class Report:
    """What one layout of a folder holds: a table (rows of cells, the first one the heading) and the problems.

    ``problems`` maps a kind of problem to the places where it was found.
    """

    kind: str
    root: Path
    splits: list[tuple[str, ...]] = field(default_factory=list)
    classes: list[tuple[str, ...]] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str, where: str | Path) -> None:
        """Note that ``problem`` was found at ``where``, a file relative to the root or a place in one."""
        self.problems.setdefault(problem, []).append(str(where))

    @property
    def count(self) -> int:
        """Number of problems."""
        return sum(len(places) for places in self.problems.values())

    def __str__(self) -> str:
        lines = [f"{self.root}: {TASKS[self.kind]}, {LAYOUTS[self.kind].split(':')[0]}", ""]
        lines += [*_aligned(self.splits), "", *_aligned(self.classes)]
        for problem, places in self.problems.items():
            lines += ["", f"{problem}: {len(places)}", *(f"  {place}" for place in places[:SHOWN])]
            if len(places) > SHOWN:
                lines.append(f"  and {len(places) - SHOWN} more")
        return "\n".join(map(visible, lines))


def check_folder(root: str | Path, task: str | None = None, progress: Progress | None = None) -> list[Report]:
    """Check the layouts in ``root`` that fit ``task`` ("seg", "det", "cls"), or all that are found there.

    ``progress(done, total)`` is called after each image.

    Raises:
        UserError: ``root`` holds no dataset at all.
    """
    root = Path(root)
    if task is not None and task not in TASKS:
        raise unknown_name("task", task, TASKS)
    scenes = (root / "scenes.json").is_file()
    kinds = [task] if task else list(TASKS) if scenes else found_layouts(root)
    if not root.is_dir() or not kinds:
        missing = "every known layout" if root.is_dir() else "the folder"
        layouts = "; ".join(LAYOUTS.values())
        raise UserError(f"no dataset in {root}: {missing} is missing (known: {layouts}); built in are: --data {SCENES}")
    check = {"seg": _check_segmentation, "det": _check_detection, "cls": _check_classification}
    progress = progress or (lambda done, total: None)
    return [check[kind](root / kind if scenes else root, progress) for kind in kinds]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns of equal width, the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _image_size(path: Path) -> tuple[int, int]:
    """Decode an image completely and return its (height, width) as it will be loaded, turned as its EXIF says.

    Raises:
        OSError, SyntaxError, ValueError: the file is truncated, damaged or no image.
    """
    with Image.open(path) as image:
        image.load()
        turned = image.getexif().get(0x0112, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def _range(sizes: list[tuple[int, int]]) -> str:
    """Heights by widths, "480x360" or "300-600x400-800"."""
    if not sizes:
        return "-"
    return "x".join(
        str(min(side)) if min(side) == max(side) else f"{min(side)}-{max(side)}" for side in zip(*sizes, strict=True)
    )


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "-"


# --- segmentation --------------------------------------------------------------------------------------------------


def _check_segmentation(root: Path, progress: Progress) -> Report:
    report = Report("seg", root, splits=[("split", "images", "masks", "size", "void")])
    pairs = {name: _pair_up(report, root, name) for name in ("training", "validation")}
    names = None
    if (root / "classes.txt").is_file():
        try:
            names = read_class_names(root / "classes.txt")
        except UserError as error:
            report.add("unusable list of classes", str(error))
    total, done, pixels = sum(len(p) for p in pairs.values()), 0, {}
    for name, files in pairs.items():
        pixels[name], sizes, masks = np.zeros(256, np.int64), [], 0
        for image, mask in files:
            size = _check_image(report, image)
            if size:
                sizes.append(size)
            if mask:
                masks += 1
                pixels[name] += _check_mask(report, mask, size, None if names is None else len(names))
            done += 1
            progress(done, total)
        void = _share(pixels[name][list(VOID)].sum(), pixels[name].sum())
        report.splits.append((name, str(sum(image is not None for image, _ in files)), str(masks), _range(sizes), void))
    used = np.flatnonzero(np.sum(list(pixels.values()), 0)[1:255]) + 1
    names = names or tuple(f"class_{i + 1}" for i in range(used.max(initial=0)))
    report.classes = [("class", "training pixels", "validation pixels")]
    for label, name in enumerate(names, 1):
        shares = (_share(counts[label], counts[1:255].sum()) for counts in pixels.values())
        report.classes.append((f"{label} {name}", *shares))
    if not len(used) and not report.problems:
        report.add("no labels: every mask is void", "annotations")
    return report


def _pair_up(report: Report, root: Path, name: str) -> list[tuple[Path | None, Path | None]]:
    """List the images of a split with their masks, and note those that stand alone."""
    folders = root / "images" / name, root / "annotations" / name
    found = []
    for folder, what in zip(folders, ("images", "masks"), strict=True):
        files = image_files(folder)
        found.append({path.relative_to(folder).with_suffix(""): path for path in files})
        if not files:
            report.add(f"no {what}", folder.relative_to(root))
        suffixes = sorted({path.suffix for path in files})
        if len(suffixes) > 1:
            report.add("files of different formats in one folder", f"{folder.relative_to(root)}: {' '.join(suffixes)}")
    images, masks = found
    for stem in sorted(images.keys() - masks.keys()):
        report.add("image without mask", images[stem].relative_to(root))
    for stem in sorted(masks.keys() - images.keys()):
        report.add("mask without image", masks[stem].relative_to(root))
    return [(images.get(stem), masks.get(stem)) for stem in sorted(images.keys() | masks.keys())]


def _check_image(report: Report, path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        return _image_size(path)
    except UNREADABLE as error:
        report.add("unreadable image", f"{path.relative_to(report.root)}: {error}")
        return None


def _check_mask(report: Report, path: Path, size: tuple[int, int] | None, classes: int | None) -> np.ndarray:
    """Return the number of pixels of each label, (256,)."""
    where = path.relative_to(report.root)
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except UNREADABLE as error:
        report.add("unreadable mask", f"{where}: {error}")
        return np.zeros(256, np.int64)
    if labels.ndim != 2:
        report.add("mask with several channels instead of labels", f"{where}: {labels.shape[2]} channels")
        return np.zeros(256, np.int64)
    if size and labels.shape != size:
        report.add(
            "mask of another size than its image", f"{where}: {_range([labels.shape])}, the image {_range([size])}"
        )
    values, counts = np.unique(labels, return_counts=True)
    limit = 254 if classes is None else classes
    outside = [int(v) for v in values if v not in VOID and not 0 < v <= limit]
    if outside:
        report.add(
            "label outside the classes", f"{where}: {', '.join(map(str, outside[:5]))}; there are {limit} classes"
        )
    fits = (values >= 0) & (values < 256)
    pixels = np.zeros(256, np.int64)
    pixels[values[fits].astype(int)] = counts[fits]
    return pixels


# --- detection -----------------------------------------------------------------------------------------------------


def _check_detection(root: Path, progress: Progress) -> Report:
    heading = ("split", "images", "not listed", "size", "instances", "crowd", "without")
    report = Report("det", root, splits=[heading])
    files = {}
    for name in ("train2017", "val2017"):
        path = root / "annotations" / f"instances_{name}.json"
        if not path.is_file():
            report.add("missing file", path.relative_to(root))
            continue
        try:
            files[name] = read_coco(path)
        except UserError as error:
            report.add("unusable annotation file", str(error))
    total, done = sum(len(content["images"]) for content in files.values()), 0
    counts: dict[str, list[int]] = {}
    for position, (name, content) in enumerate(files.items()):
        file, folder = f"annotations/instances_{name}.json", root / name
        for key in ("images", "annotations", "categories"):
            if not content[key]:
                report.add(f"no {key}", file)
            _check_ids(report, file, key, content[key])
        sizes = []
        for image in content["images"]:
            sizes += _check_listed_image(report, folder, image)
            done += 1
            progress(done, total)
        sizes_of = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        for category in names.values():
            counts.setdefault(category, [0] * len(files))
        with_masks = any(annotation.get("segmentation") for annotation in content["annotations"])
        for annotation in content["annotations"]:
            _check_annotation(report, file, annotation, sizes_of, names, with_masks)
            if annotation.get("category_id") in names:
                counts[names[annotation["category_id"]]][position] += 1
        listed = {str(image["file_name"]) for image in content["images"]}
        unlisted = sum(path.relative_to(folder).as_posix() not in listed for path in image_files(folder))
        empty = len(sizes_of.keys() - {annotation.get("image_id") for annotation in content["annotations"]})
        crowd = sum(bool(annotation.get("iscrowd")) for annotation in content["annotations"])
        row = (len(listed), unlisted, _range(sizes), len(content["annotations"]), crowd, empty)
        report.splits.append((name, *map(str, row)))
    if len(files) == 2:
        first, second = ([(c["id"], c["name"]) for c in content["categories"]] for content in files.values())
        if first != second:
            report.add("categories differ between the splits", "annotations")
    report.classes = [("category", *(f"{name} instances" for name in files))]
    report.classes += [(category, *map(str, numbers)) for category, numbers in counts.items()]
    return report


def _check_ids(report: Report, file: str, key: str, entries: list[dict]) -> None:
    seen = set()
    for entry in entries:
        if entry["id"] in seen:
            report.add(f"id used twice in {key}", f"{file}: {entry['id']}")
        seen.add(entry["id"])


def _check_listed_image(report: Report, folder: Path, image: dict) -> list[tuple[int, int]]:
    path = folder / str(image["file_name"])
    if not path.is_file():
        report.add("missing image", path.relative_to(report.root))
        return []
    size = _check_image(report, path)
    if size and size != (image["height"], image["width"]):
        stated = f"{image['height']}x{image['width']}"
        report.add(
            "image of another size than stated", f"{path.relative_to(report.root)}: {_range([size])}, not {stated}"
        )
    return [size] if size else []


def _check_annotation(report: Report, file: str, annotation: dict, sizes: dict, names: dict, with_masks: bool) -> None:
    where = f"{file}: annotation {annotation['id']}"
    if annotation.get("category_id") not in names:
        report.add("unknown category", f"{where}: category {annotation.get('category_id')}")
    if annotation.get("image_id") not in sizes:
        report.add("annotation of an image that is not listed", f"{where}: image {annotation.get('image_id')}")
        return
    height, width = sizes[annotation["image_id"]]
    box = annotation.get("bbox")
    if not _numbers(box) or len(box) != 4 or box[2] <= 0 or box[3] <= 0:
        report.add("malformed or empty box", f"{where}: {json.dumps(box)[:60]}")
    elif min(box[:2]) < -SLACK or box[0] + box[2] > width + SLACK or box[1] + box[3] > height + SLACK:
        report.add("box outside its image", f"{where}: {box} in {height}x{width}")
    shape = annotation.get("segmentation")
    if not shape:
        if with_masks:
            report.add("empty segmentation", where)
    elif isinstance(shape, dict):
        if not _sound_run_lengths(shape, height, width):
            report.add("malformed run lengths", f"{where}: size {shape.get('size')} in {height}x{width}")
    elif not isinstance(shape, list) or any(not _numbers(p) or len(p) < 6 or len(p) % 2 for p in shape):
        report.add(
            "malformed polygon", f"{where}: fewer than three points, an odd number of coordinates, or no numbers"
        )
    elif all(_area(polygon) == 0 for polygon in shape):
        report.add("polygon without area", where)
    elif any(_leaves(polygon, height, width) for polygon in shape):
        report.add("polygon outside its image", where)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and np.isfinite(x) for x in value
    )


def _sound_run_lengths(shape: dict, height: int, width: int) -> bool:
    """Whether run lengths have the image's size and, where they are not packed, cover exactly its pixels."""
    counts = shape.get("counts")
    if shape.get("size") != [height, width]:
        return False
    if isinstance(counts, str):
        return bool(counts)
    return _numbers(counts) and min(counts, default=-1) >= 0 and sum(counts) == height * width


def _area(polygon: list[float]) -> float:
    x, y = np.array(polygon[0::2], float), np.array(polygon[1::2], float)
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _leaves(polygon: list[float], height: int, width: int) -> bool:
    xs, ys = polygon[0::2], polygon[1::2]
    return min(*xs, *ys) < -SLACK or max(xs) > width + SLACK or max(ys) > height + SLACK


# --- classification ------------------------------------------------------------------------------------------------


def _check_classification(root: Path, progress: Progress) -> Report:
    report = Report("cls", root, splits=[("split", "images", "classes", "size")])
    files: dict[str, dict[str, list[Path]]] = {}
    for name in ("train", "val"):
        folder = root / name
        if not folder.is_dir():
            raise missing_dataset(root, f"the folder {name}", "cls")
        files[name] = {class_name: image_files(folder / class_name) for class_name in class_folders(folder)}
    total, done = sum(len(paths) for split in files.values() for paths in split.values()), 0
    for name, classes in files.items():
        sizes = []
        if not any(classes.values()):
            report.add("no images", name)
        for class_name, paths in classes.items():
            if not paths:
                report.add("class without images", f"{name}/{class_name}")
            for path in paths:
                size = _check_image(report, path)
                sizes += [size] if size else []
                done += 1
                progress(done, total)
        loose = [path for path in image_files(root / name) if path.parent == root / name]
        for path in loose:
            report.add("image outside the class folders", path.relative_to(root))
        report.splits.append((name, str(sum(map(len, classes.values()))), str(len(classes)), _range(sizes)))
    for class_name in sorted(files["train"].keys() ^ files["val"].keys()):
        report.add("class folder in one split only", class_name)
    report.classes = [("class", "train images", "val images")]
    for class_name in sorted(files["train"].keys() | files["val"].keys()):
        report.classes.append((class_name, *(str(len(split.get(class_name, []))) for split in files.values())))
    return report
