"""Recognise and describe dataset folders: ADE20K's layout, COCO's, and one folder a class.

Nothing here imports OpenMMLab; ``datasets/configure.py`` points its configs at what is described here.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mixtransfer.datasets.scenes import GENERATOR, read_parameters, write_scenes
from mixtransfer.errors import UserError, unknown_name

__all__ = [
    "LAYOUTS",
    "SCENES",
    "TASKS",
    "VOID",
    "DatasetFolder",
    "Split",
    "found_layouts",
    "image_files",
    "make_palette",
    "missing_dataset",
    "open_dataset",
    "read_class_names",
]

SCENES = "scenes"
"""The word that stands for the built-in scenes where a dataset folder is asked for."""
TASKS = {"seg": "segmentation", "det": "detection", "cls": "classification"}
LAYOUTS = {
    "seg": "ADE20K's layout: images/{training,validation}, annotations/{training,validation}, optional classes.txt",
    "det": "COCO's layout: train2017, val2017, annotations/instances_{train2017,val2017}.json",
    "cls": "one folder a class: train/<class>/*, val/<class>/*",
}
VOID = (0, 255)
"""Labels of a segmentation mask that belong to no class."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Split:
    """Where one split lies, relative to the root, and how many images it has.

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


def open_dataset(
    path: str | Path, task: str, scenes_root: str | Path = "data/scenes", progress: Progress | None = None
) -> DatasetFolder:
    """Describe the dataset in ``path`` for ``task`` ("seg", "det" or "cls").

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
    opened = {"seg": _open_segmentation, "det": _open_detection, "cls": _open_classification}[task]
    return opened(root, progress or (lambda done, total: None))


def missing_dataset(root: Path, missing: str, task: str) -> UserError:
    """Return the error for a dataset folder that is not there or not complete."""
    others = [LAYOUTS[kind] for kind in found_layouts(root) if kind != task]
    found = f"; what is there is in {others[0]}" if others else ""
    return UserError(
        f"no {TASKS[task]} dataset in {root}: {missing} is missing (looked in {root.resolve()}){found}; "
        f"expected is {LAYOUTS[task]}; the built-in scenes need no download: --data {SCENES}"
    )


def found_layouts(root: Path) -> list[str]:
    """Return the kinds of dataset ("seg", "det", "cls") of which ``root`` holds at least a part."""
    signs = {
        "seg": (root / "images/training", root / "annotations/training"),
        "det": (root / "train2017", root / "annotations/instances_train2017.json"),
        "cls": (root / "train",),
    }
    return [kind for kind, paths in signs.items() if any(path.exists() for path in paths)]


def image_files(folder: Path) -> list[Path]:
    """Return the image files below ``folder``, sorted; hidden ones are not counted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the lines of ``classes.txt``.

    Raises:
        UserError: no names, a name twice, more than a mask of 8 bits can hold, or not a text file.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as UTF-8 text ({error}); it should hold one class name a line"
        ) from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice or len(names) > 254:
        wrong = f"{twice[0]!r} stands twice" if twice else f"{len(names)} names"
        raise UserError(f"{path}: {wrong}; it should hold 1 to 254 different class names, one a line")
    return names


def make_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return ``count`` well separated colors: hues a golden section apart, in three strengths."""
    strengths = [(0.75, 0.95), (0.5, 0.75), (0.95, 0.6)]
    return tuple(
        tuple(round(255 * x) for x in colorsys.hsv_to_rgb(i * 0.618034 % 1, *strengths[i % 3])) for i in range(count)
    )


def _open_segmentation(root: Path, progress: Progress) -> DatasetFolder:
    splits, masks = [], []
    for name in ("training", "validation"):
        images, labels = root / "images" / name, root / "annotations" / name
        for folder in (images, labels):
            if not folder.is_dir():
                raise missing_dataset(root, f"the folder {folder.relative_to(root)}", "seg")
        pictures, maps = image_files(images), image_files(labels)
        if not pictures:
            raise UserError(f"{images} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some, or use --data {SCENES}")
        suffix, mask_suffix = _only_suffix(images, pictures), _only_suffix(labels, maps) if maps else ".png"
        have = {path.relative_to(labels).with_suffix("") for path in maps}
        lonely = [path for path in pictures if path.relative_to(images).with_suffix("") not in have]
        if lonely:
            raise UserError(
                f"{len(lonely)} of {len(pictures)} images in {images} have no mask in {labels}, "
                f"first {lonely[0].name}; add the masks or take the images away"
            )
        splits.append(Split(f"images/{name}", f"annotations/{name}", len(pictures), suffix, mask_suffix))
        masks += maps
    names = root / "classes.txt"
    if names.is_file():
        classes = read_class_names(names)
    else:
        classes = tuple(f"class_{i + 1}" for i in range(_largest_label(root, masks, progress)))
    return DatasetFolder("seg", root, classes, make_palette(len(classes)), *splits)


def _only_suffix(folder: Path, files: list[Path]) -> str:
    suffixes = sorted({path.suffix for path in files})
    if len(suffixes) > 1:
        raise UserError(f"{folder} mixes {' and '.join(suffixes)} files; convert them to one format")
    return suffixes[0]


def _largest_label(root: Path, masks: list[Path], progress: Progress) -> int:
    largest = 0
    for done, path in enumerate(masks, 1):
        try:
            with Image.open(path) as mask:
                labels = np.asarray(mask)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: unreadable mask ({error}); replace it") from error
        if labels.ndim != 2 or labels.max() > 255:
            raise UserError(f"{path}: a mask has one channel of 8 bits with the label of each pixel; convert it")
        largest = max(largest, int(labels[labels != 255].max(initial=0)))
        progress(done, len(masks))
    if largest == 0:
        raise UserError(f"all masks in {root / 'annotations'} are void (0 or 255); labels start at 1")
    return largest


def _open_detection(root: Path, progress: Progress) -> DatasetFolder:
    splits, categories = [], []
    for name in ("train2017", "val2017"):
        images, file = root / name, root / "annotations" / f"instances_{name}.json"
        if not images.is_dir():
            raise missing_dataset(root, f"the folder {name}", "det")
        if not file.is_file():
            raise missing_dataset(root, f"the file {file.relative_to(root)}", "det")
        content = read_coco(file)
        if not content["images"] or not content["annotations"] or not content["categories"]:
            empty = next(key for key in COCO_KEYS if not content[key])
            raise UserError(f"{file} lists no {empty}; a dataset needs some, or use --data {SCENES}")
        lost = [name for name in coco_file_names(content) if not (images / name).is_file()]
        if lost:
            raise UserError(
                f"{len(lost)} of {len(content['images'])} images of {file} are not in {images}, first {lost[0]}; "
                "add them or take them out of the file"
            )
        # In the file's order, not sorted: that is the order in which mmdet numbers the classes.
        categories.append([(category["id"], str(category["name"])) for category in content["categories"]])
        splits.append(Split(name, f"annotations/instances_{name}.json", len(content["images"])))
    if categories[0] != categories[1]:
        raise UserError(
            f"the categories of the two files in {root / 'annotations'} differ; make them equal, in one order"
        )
    classes = tuple(name for _, name in categories[0])
    if len(set(classes)) < len(classes):
        raise UserError(f"two categories in {root / splits[0].annotations} have the same name; rename one")
    return DatasetFolder("det", root, classes, make_palette(len(classes)), *splits)


COCO_KEYS = ("images", "annotations", "categories")


def read_coco(path: Path) -> dict:
    """Return the content of a COCO annotation file, its three lists present and made of objects.

    Raises:
        UserError: not JSON, or not COCO's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a JSON file ({error}); replace it") from error
    for key in COCO_KEYS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} has no list {key!r}; it should be a COCO instances file")
        required = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}.get(key, ("id",))
        for entry in content[key]:
            if not isinstance(entry, dict) or any(name not in entry for name in required):
                raise UserError(f"{path}: an entry of {key!r} lacks one of {', '.join(required)}: {str(entry)[:80]}")
    return content


def coco_file_names(content: dict) -> Iterator[str]:
    """Yield the file name of each image of a COCO annotation file."""
    return (str(image["file_name"]) for image in content["images"])


def _open_classification(root: Path, progress: Progress) -> DatasetFolder:
    splits, classes = [], []
    for name in ("train", "val"):
        folder = root / name
        if not folder.is_dir():
            raise missing_dataset(root, f"the folder {name}", "cls")
        classes.append(class_folders(folder))
        splits.append(Split(name, name, len(image_files(folder))))
        if not splits[-1].count:
            raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some, or use --data {SCENES}")
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise UserError(f"{root}: train and val have different class folders: {', '.join(odd[:5])}; make them equal")
    return DatasetFolder("cls", root, classes[0], make_palette(len(classes[0])), *splits)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders in ``folder`` in label order (sorted); hidden ones are not counted."""
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
