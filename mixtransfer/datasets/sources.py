"""The description that readers of foreign datasets share: images with their split, masks or instances."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixtransfer.datasets.stored import Unusable, opened
from mixtransfer.errors import UserError

__all__ = [
    "IMAGE_SUFFIXES",
    "MARKER",
    "Item",
    "Source",
    "displayed_size",
    "folder_named",
    "image_files",
    "polygon_box",
    "read_classes",
    "split_folders",
    "split_of",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
#: The file by which a folder tells what it was converted from.
MARKER = "mixtransfer.json"
SPLITS = {"train": ("train", "training", "train2017"), "val": ("val", "valid", "validation", "val2017")}


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        image: the file.
        name: its name in the dataset, with folders; no two of a split have the same.
        split: "train", "val", or empty where nothing says.
        mask: file of its labels, of a segmentation.
        shapes: what is painted in the place of a mask: (class, polygon [x, y, …]) in order.
        label: its class, of a classification.
    """

    image: Path
    name: str
    split: str = ""
    mask: Path | None = None
    shapes: tuple[tuple[str, tuple[float, ...]], ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Source:
    """A dataset as it was found.

    Attributes:
        layout: its name, for people.
        task: "seg", "det" or "cls".
        root: the folder.
        items: the images.
        classes: names, in the order of labels; empty where masks only number them.
        colors: a color for each class; masks of three channels are read by them.
        annotations: COCO's, ``image_id`` being the number of the item and ``category_id`` that of the class.
        stored: label in masks -> class, where that is no plain number, or 255 for void; others are mistakes.
        zero_is_class: whether label 0 is the first class; None where masks have to be looked at.
        notes: what is left out or taken in a way that should be known.
    """

    layout: str
    task: str
    root: Path
    items: tuple[Item, ...]
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    annotations: tuple[dict[str, Any], ...] = ()
    stored: Mapping[int, int] = field(default_factory=dict)
    zero_is_class: bool | None = None
    notes: tuple[str, ...] = ()


def image_files(folder: Path) -> list[Path]:
    """Return the image files below ``folder``, sorted; hidden ones, and those in hidden folders, are not counted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Return the names in ``classes.txt`` and, where every line ends in a color (``road 128 64 128``), the colors.

    Raises:
        UserError: no names, a name or color twice, more than a mask of 8 bits can hold, or not a text file.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as UTF-8 text ({error}); it should hold one class name a line"
        ) from error
    colored = [re.fullmatch(r"(.*\S)\s+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})", line) for line in lines]
    found = [match for match in colored if match and max(map(int, match.groups()[1:])) < 256]
    names, colors = tuple(lines), ()
    if lines and len(found) == len(lines):
        names = tuple(match[1] for match in found)
        colors = tuple((int(match[2]), int(match[3]), int(match[4])) for match in found)
    twice = sorted({str(value) for values in (names, colors) for value in values if values.count(value) > 1})
    if not names or twice or len(names) > 254:
        wrong = f"{twice[0]!r} stands twice" if twice else f"{len(names)} names"
        raise UserError(f"{path}: {wrong}; it should hold 1 to 254 different class names, one a line")
    return names, colors


def split_of(word: str) -> str:
    """Return the split that a folder or file is named after, "train" or "val"; empty of others."""
    return next((split for split, names in SPLITS.items() if word.lower() in names), "")


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of splits inside one: {} or {"train": …, "val": …}, one of them being enough."""
    found = {split_of(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}
    return {split: path for split, path in found.items() if split}


def folder_named(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the folder inside ``folder`` that has one of the names, in whatever case; None where there is none."""
    inside = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}
    return next((inside[name.lower()] for name in names if name.lower() in inside), None)


def displayed_size(path: Path) -> tuple[int, int]:
    """Return the (height, width) of an image as it is displayed, from its header.

    Raises:
        UserError: no image.
    """
    try:
        with opened(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) > 4
    except Unusable as error:
        raise UserError(f"{path}: {error}") from error
    return (width, height) if turned else (height, width)


def polygon_box(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Return the smallest box (x, y, width, height) around polygons [x, y, …]."""
    x, y = ([value for polygon in polygons for value in polygon[first::2]] for first in (0, 1))
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]
