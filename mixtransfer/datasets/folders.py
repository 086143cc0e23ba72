"""Dataset folders in our layouts, ADE20K's, COCO's, and one folder a class, described; others are converted first.

Nothing here imports OpenMMLab; ``datasets/configure.py`` points its configs at what is described here.
"""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mixtransfer.datasets.coco import category_names, image_exists, image_names, read_coco
from mixtransfer.datasets.convert import standard_form
from mixtransfer.datasets.layouts import KNOWN
from mixtransfer.datasets.scenes import GENERATOR, read_parameters, write_scenes
from mixtransfer.datasets.sources import IMAGE_SUFFIXES, MARKER, image_files, read_classes
from mixtransfer.datasets.stored import Unusable, are_binary, count_labels, read_mask
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.progress import notice

__all__ = [
    "LAYOUTS",
    "SCENES",
    "TASKS",
    "DatasetFolder",
    "Split",
    "found_layouts",
    "make_palette",
    "missing_dataset",
    "open_dataset",
]

SCENES = "scenes"
"""The word that stands for the built-in scenes in place of a dataset folder."""
TASKS = {"seg": "segmentation", "det": "detection", "cls": "classification"}
LAYOUTS = {
    "seg": "ADE20K's layout: images/{training,validation}, annotations/{training,validation}, optional classes.txt",
    "det": "COCO's layout: train2017, val2017, annotations/instances_{train2017,val2017}.json",
    "cls": "one folder a class: train/<class>/*, val/<class>/*",
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Split:
    """One split: its folders relative to the root, and its number of images.

    ``annotations`` is a folder of masks (seg), a JSON file (det) or the image folder itself (cls); the suffixes are
    those of images and masks, empty where no file name depends on them.
    """

    images: str
    annotations: str
    count: int
    image_suffix: str = ""
    mask_suffix: str = ""


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset that was found complete: class names in label order, a color (R, G, B) for each, and two splits."""

    kind: str
    root: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: Split
    val: Split
    #: Whether label 0 of its masks is the first class; else it is void.
    zero_is_class: bool = False


def open_dataset(
    path: str | Path,
    task: str,
    scenes_root: str | Path = "data/scenes",
    progress: Progress | None = None,
    zero_is_class: bool | None = None,
) -> DatasetFolder:
    """Describe the dataset in ``path`` for ``task`` ("seg", "det" or "cls").

    A dataset in a layout of :data:`~mixtransfer.datasets.layouts.KNOWN` is converted first, see
    :func:`~mixtransfer.datasets.convert.standard_form`. ``zero_is_class`` says whether label 0 of masks is a class;
    None: what the masks say, and void in ADE20K's layout.

    ``path == "scenes"`` stands for the built-in scenes, written to ``scenes_root`` unless they are there; a folder that
    ``write_scenes`` made stands for the layout in it that fits the task. ``progress(done, total)`` reports writing the
    scenes, and reading the masks of a folder without ``classes.txt``.

    Raises:
        UserError: what is missing or does not fit, where it was looked for, and the remedy.
    """
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    root = Path(path)
    if str(path) == SCENES:
        root = Path(scenes_root)
        parameters = read_parameters(root)
        if parameters is None or parameters.generator != GENERATOR:
            write_scenes(root, progress=progress)
    if (root / "scenes.json").is_file():
        root = root / task
    progress = progress or (lambda done, total: None)
    if not is_standard(root, task):
        root = standard_form(root, task, progress, zero_is_class) or root
    if task == "seg":
        return _open_segmentation(root, progress, zero_is_class)
    return {"det": _open_detection, "cls": _open_classification}[task](root, progress)


def is_standard(root: Path, task: str) -> bool:
    """Return whether a folder has at least a part of our layout for a task, and no other dataset is looked for."""
    return task in found_layouts(root) and (task != "cls" or (root / "val").is_dir())


def marked_zero(root: Path) -> bool | None:
    """Return what a folder that we converted says of label 0: whether it is a class; None in others."""
    if not (root / MARKER).is_file():
        return None
    return bool(json.loads((root / MARKER).read_text(encoding="utf-8")).get("zero_is_class"))


def missing_dataset(root: Path, missing: str, task: str) -> UserError:
    """Return the error for a dataset folder that is not there or not complete."""
    others = [LAYOUTS[kind] for kind in found_layouts(root) if kind != task]
    found = f"; what is there is in {others[0]}" if others else ""
    return UserError(
        f"no {TASKS[task]} dataset in {root}: {missing} is missing (looked in {os.path.abspath(root)}){found}; "
        f"expected is {LAYOUTS[task]}; or {KNOWN[task]}; the built-in scenes need no download: --data {SCENES}"
    )


def found_layouts(root: Path) -> list[str]:
    """Return the kinds of dataset ("seg", "det", "cls") of which ``root`` holds at least a part."""
    signs = {
        "seg": (root / "images/training", root / "annotations/training"),
        "det": (root / "train2017", root / "annotations/instances_train2017.json"),
        "cls": (root / "train",),
    }
    return [kind for kind, paths in signs.items() if any(path.exists() for path in paths)]


def make_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return ``count`` well separated colors: hues a golden section apart, in three strengths."""
    strengths = [(0.75, 0.95), (0.5, 0.75), (0.95, 0.6)]
    return tuple(
        tuple(round(255 * x) for x in colorsys.hsv_to_rgb(i * 0.618034 % 1, *strengths[i % 3])) for i in range(count)
    )


def _open_segmentation(root: Path, progress: Progress, zero_is_class: bool | None) -> DatasetFolder:
    splits, masks = [], []
    for name in ("training", "validation"):
        images, labels = root / "images" / name, root / "annotations" / name
        for folder in (images, labels):
            if not folder.is_dir():
                raise missing_dataset(root, f"the folder {folder.relative_to(root)}", "seg")
        pictures, maps = image_files(images), image_files(labels)
        if not pictures:
            raise UserError(f"{images} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some, or use --data {SCENES}")
        mask_suffix = _only_suffix(labels, maps) if maps else ".png"
        have = {path.relative_to(labels).with_suffix("") for path in maps}
        stems = [path.relative_to(images).with_suffix("") for path in pictures]
        twice = next((stem for stem, following in pairwise(sorted(stems)) if stem == following), None)
        if twice is not None:
            raise UserError(f"{images} has two images named {twice}, in different formats; rename or remove one")
        lonely = [path for path, stem in zip(pictures, stems, strict=True) if stem not in have]
        if lonely:
            raise UserError(
                f"{len(lonely)} of {len(pictures)} images in {images} have no mask in {labels}, "
                f"first {lonely[0].name}; add the masks or take the images away"
            )
        splits.append(Split(f"images/{name}", f"annotations/{name}", len(pictures), pictures[0].suffix, mask_suffix))
        masks += maps
    zero = marked_zero(root) if zero_is_class is None else zero_is_class
    colors = ()
    if (root / "classes.txt").is_file():
        classes, colors = read_classes(root / "classes.txt")
    else:
        counts = _labels_of(root, masks, progress)
        if zero is None and are_binary(counts):
            zero = True
            notice(f"{root}: all labels are 0 and 1, so 0 is a class too (--no-zero-is-class makes it void)")
        elif zero is None and counts[0]:
            notice(f"{root}: label 0 is void, as in ADE20K; --zero-is-class makes it a class")
        classes = tuple(f"class_{i}" for i in range(0 if zero else 1, int(np.flatnonzero(counts[:255])[-1]) + 1))
    return DatasetFolder("seg", root, classes, colors or make_palette(len(classes)), *splits, bool(zero))


def _only_suffix(folder: Path, files: list[Path]) -> str:
    suffixes = sorted({path.suffix for path in files})
    if len(suffixes) > 1:
        raise UserError(f"{folder} mixes {' and '.join(suffixes)} files; convert them to one format")
    return suffixes[0]


def _labels_of(root: Path, masks: list[Path], progress: Progress) -> np.ndarray:
    """Return the pixels of each label in all masks, (256,)."""
    counts = np.zeros(256, np.int64)
    for done, path in enumerate(masks, 1):
        try:
            counts += count_labels(read_mask(path))
        except Unusable as error:
            raise UserError(f"{path}: {error}; see mixtransfer data check") from error
        progress(done, len(masks))
    if not counts[1:255].any():
        raise UserError(f"all masks in {root / 'annotations'} are void (0 or 255); labels start at 1")
    return counts


def _open_detection(root: Path, progress: Progress) -> DatasetFolder:
    splits, categories = [], []
    for name in ("train2017", "val2017"):
        images, file = root / name, root / "annotations" / f"instances_{name}.json"
        if not images.is_dir():
            raise missing_dataset(root, f"the folder {name}", "det")
        if not file.is_file():
            raise missing_dataset(root, f"the file {file.relative_to(root)}", "det")
        content = read_coco(file)
        for key in ("images", "annotations", "categories"):
            if not content[key]:
                raise UserError(f"{file} lists no {key}; a dataset needs some, or use --data {SCENES}")
        lost = [name for name in image_names(content) if not image_exists(images, name)]
        if lost:
            raise UserError(
                f"{len(lost)} of {len(content['images'])} images of {file} are not in {images}, first {lost[0]}; "
                "add them or take them out of the file"
            )
        categories.append(category_names(content))
        splits.append(Split(name, f"annotations/instances_{name}.json", len(content["images"])))
    # By name: numbers and order are the file's own affair, and a file may leave out what it has no instances of.
    unknown = [name for name in categories[1] if name not in categories[0]]
    if unknown:
        raise UserError(
            f"{root / splits[1].annotations} has categories that {splits[0].annotations} lacks:"
            f" {', '.join(unknown[:5])}; there are {', '.join(categories[0])}; make them equal"
        )
    for names, split in zip(categories, splits, strict=True):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"two categories in {root / split.annotations} have the name {twice[0]}; rename one")
    classes = categories[0]
    return DatasetFolder("det", root, classes, make_palette(len(classes)), *splits)


def _open_classification(root: Path, progress: Progress) -> DatasetFolder:
    splits, classes = [], []
    for name in ("train", "val"):
        folder = root / name
        if not folder.is_dir():
            raise missing_dataset(root, f"the folder {name}", "cls")
        classes.append(class_folders(folder))
        counts = {label: len(image_files(folder / label)) for label in classes[-1]}
        splits.append(Split(name, name, sum(counts.values())))
        empty = [label for label, count in counts.items() if not count]
        if name == "train" and 0 < len(empty) < len(counts):
            raise UserError(f"{folder / empty[0]} holds no images of its class; add some, or take the folder away")
        if not splits[-1].count:
            raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some, or use --data {SCENES}")
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise UserError(f"{root}: train and val have different class folders: {', '.join(odd[:5])}; make them equal")
    return DatasetFolder("cls", root, classes[0], make_palette(len(classes[0])), *splits)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders in ``folder`` in label order (sorted); hidden ones are not counted."""
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
