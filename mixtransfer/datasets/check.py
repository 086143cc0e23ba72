"""Check a dataset folder: every file is opened, every label looked at, every annotation tested.

``check_folder`` never stops at the first problem: it returns all of them, with a table of what is there. What a file
must be is judged where training judges it, in ``stored``, ``coco`` and ``learnable``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mixtransfer.datasets.coco import category_names, find_problems, image_exists, read_coco
from mixtransfer.datasets.convert import recognized, standard_form
from mixtransfer.datasets.folders import (
    LAYOUTS,
    SCENES,
    TASKS,
    class_folders,
    found_layouts,
    is_standard,
    marked_zero,
    missing_dataset,
)
from mixtransfer.datasets.sources import image_files, read_classes
from mixtransfer.datasets.stored import (
    LAST_UNUSED,
    SHIFTED,
    VOID,
    Unusable,
    are_binary,
    count_labels,
    image_size,
    label_problem,
    read_mask,
    require_labels,
)
from mixtransfer.errors import UserError, unknown_name, visible

__all__ = ["Report", "check_folder"]

Progress = Callable[[int, int], None]
#: Places of a problem that are shown.
SHOWN = 5


@dataclass
class Report:
    """The contents of a folder in one layout: a table (rows of cells, the first one the heading) and the problems.

    ``problems`` maps a kind of problem to the places where it was found; ``notes`` say what is no problem, and filled,
    left out or taken in a way that should be known.
    """

    kind: str
    root: Path
    splits: list[tuple[str, ...]] = field(default_factory=list)
    classes: list[tuple[str, ...]] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
        if self.notes:
            lines += ["", *(f"note: {note}" for note in self.notes)]
        return "\n".join(map(visible, lines))


def check_folder(
    root: str | Path, task: str | None = None, progress: Progress | None = None, zero_is_class: bool | None = None
) -> list[Report]:
    """Check the layouts in ``root`` that fit ``task`` ("seg", "det", "cls"), or all that are found there.

    Another layout is converted first, as training does. ``progress(done, total)`` is called after each image,
    ``zero_is_class`` says whether label 0 of masks is a class.

    Raises:
        UserError: ``root`` holds no dataset at all.
    """
    root = Path(root)
    if task is not None and task not in TASKS:
        raise unknown_name("task", task, TASKS)
    scenes = (root / "scenes.json").is_file()
    kinds = [task] if task else list(TASKS) if scenes else _kinds(root)
    if not root.is_dir() or not kinds:
        missing = "every known layout" if root.is_dir() else "the folder"
        layouts = "; ".join(LAYOUTS.values())
        raise UserError(f"no dataset in {root}: {missing} is missing (known: {layouts}); built in are: --data {SCENES}")
    progress = progress or (lambda done, total: None)
    reports = []
    for kind in kinds:
        place = root / kind if scenes else root
        if not is_standard(place, kind):
            place = standard_form(place, kind, progress, zero_is_class) or place
        if kind == "seg":
            reports.append(
                _check_segmentation(place, progress, marked_zero(place) if zero_is_class is None else zero_is_class)
            )
        else:
            reports.append({"det": _check_detection, "cls": _check_classification}[kind](place, progress))
    return reports


def _kinds(root: Path) -> list[str]:
    """Return the tasks that a folder is for; folders of images and masks are no classes."""
    kinds = found_layouts(root)
    if set(kinds) - {"cls"} or (is_standard(root, "cls") and not {"seg", "det"} & recognized(root).keys()):
        return kinds
    return [kind for kind in recognized(root) if kind != "cls"] or list(recognized(root)) or kinds


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns of equal width, the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


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


def _check_segmentation(root: Path, progress: Progress, zero: bool | None) -> Report:
    void, first = ((255,), 0) if zero else (VOID, 1)
    report, rows = Report("seg", root, splits=[("split", "images", "masks", "size", "void")]), {}
    pairs = {name: _pair_up(report, root, name) for name in ("training", "validation")}
    names = None
    if (root / "classes.txt").is_file():
        try:
            names, _ = read_classes(root / "classes.txt")
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
                pixels[name] += _check_mask(report, mask, size, None if names is None else len(names), void)
            done += 1
            progress(done, total)
        rows[name] = name, str(sum(image is not None for image, _ in files)), str(masks), _range(sizes)
    together = np.sum(list(pixels.values()), 0)
    if zero is None and names is None and are_binary(together):
        zero, void, first = True, (255,), 0
    for name, row in rows.items():
        report.splits.append((*row, _share(pixels[name][list(void)].sum(), pixels[name].sum())))
    used = np.flatnonzero(together[first:255]) + first
    if names is None:
        names = tuple(f"class_{label}" for label in range(first, used.max(initial=0) + 1))
        report.notes += [
            f"there is no classes.txt: the classes are labels {first} to {first + len(names) - 1}, and 0,"
            f" {_share(together[0], together.sum())} of pixels, is {'a class' if zero else 'void'}"
        ] * bool(names)
    report.classes = [("class", "training pixels", "validation pixels")]
    for label, name in enumerate(names, first):
        shares = (_share(counts[label], counts[first:255].sum()) for counts in pixels.values())
        report.classes.append((f"{label} {name}", *shares))
    # Without masks that could be read there is nothing to say.
    alone = label_problem(pixels["training"], names, void) if pixels["training"].sum() else None
    problem = alone if alone and alone[0] not in (SHIFTED, LAST_UNUSED) else label_problem(together, names, void)
    if problem and together.sum():
        report.add(problem[0], f"annotations: {problem[1]}")
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
        if len(suffixes) > 1 and (what == "masks" or len(found[-1]) < len(files)):
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
        return image_size(path)
    except Unusable as error:
        report.add(error.kind, f"{path.relative_to(report.root)}: {error.detail}")
        return None


def _check_mask(
    report: Report, path: Path, size: tuple[int, int] | None, classes: int | None, void: tuple[int, ...]
) -> np.ndarray:
    """Return the number of pixels of each label, (256,)."""
    where = path.relative_to(report.root)
    counts = np.zeros(256, np.int64)
    try:
        labels = read_mask(path)
        counts = count_labels(labels)
        if size and labels.shape != size:
            report.add(
                "mask of another size than its image", f"{where}: {_range([labels.shape])}, the image {_range([size])}"
            )
        require_labels(counts, 254 if classes is None else classes, void)
    except Unusable as error:
        report.add(error.kind, f"{where}: {error.detail}")
    return counts


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
        found = find_problems(content, file)
        for kind, places in found.problems.items():
            report.problems.setdefault(kind, []).extend(places)
        report.notes += found.notes
        sizes = []
        for image in content["images"]:
            sizes += _check_listed_image(report, folder, image)
            done += 1
            progress(done, total)
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        for category in category_names(content):
            counts.setdefault(category, [0] * len(files))
        for annotation in content["annotations"]:
            if annotation.get("category_id") in names:
                counts[names[annotation["category_id"]]][position] += 1
        listed = {str(image["file_name"]) for image in content["images"]}
        unlisted = sum(path.relative_to(folder).as_posix() not in listed for path in image_files(folder))
        with_instances = {annotation.get("image_id") for annotation in content["annotations"]}
        empty = sum(image["id"] not in with_instances for image in content["images"])
        crowd = sum(bool(annotation.get("iscrowd")) for annotation in content["annotations"])
        row = (len(listed), unlisted, _range(sizes), len(content["annotations"]), crowd, empty)
        report.splits.append((name, *map(str, row)))
    if len(files) == 2:
        first, second = ({str(c["name"]) for c in content["categories"]} for content in files.values())
        if second - first:
            report.add("categories differ between the splits", f"annotations: only in val2017: {_some(second - first)}")
        if first - second:
            report.notes.append(f"annotations: categories without validation: {_some(first - second)}")
        report.notes += [f"category {name} has no instance to train on" for name in first if not counts[name][0]]
    report.classes = [("category", *(f"{name} instances" for name in files))]
    report.classes += [(category, *map(str, numbers)) for category, numbers in counts.items()]
    return report


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _check_listed_image(report: Report, folder: Path, image: dict) -> list[tuple[int, int]]:
    name = str(image["file_name"])
    path = folder / name
    if not image_exists(folder, name):
        report.add("missing image", f"{folder.name}: {name}")
        return []
    try:
        size = image_size(path)
    except Unusable as error:
        report.add(error.kind, f"{folder.name}/{name}: {error.detail}")
        return []
    stated = image.get("height"), image.get("width")
    if stated not in (size, (None, None)):
        report.add(
            "image of another size than stated", f"{folder.name}/{name}: {_range([size])}, not {stated[0]}x{stated[1]}"
        )
    return [size]


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
    if len(files["train"]) == 1:
        report.add("one class only, there is nothing to tell apart", f"train: {next(iter(files['train']))}")
    report.classes = [("class", "train images", "val images")]
    for class_name in sorted(files["train"].keys() | files["val"].keys()):
        report.classes.append((class_name, *(str(len(split.get(class_name, []))) for split in files.values())))
    return report
