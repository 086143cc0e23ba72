"""Foreign datasets written in our layouts: images linked or copied, masks as labels, instances as COCO's JSON.

``--data`` and ``data check`` do this by themselves, into ``data/converted``; ``data convert`` into a folder of choice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mixtransfer.datasets.annotated import IGNORED
from mixtransfer.datasets.layouts import KNOWN, recognize
from mixtransfer.datasets.sources import MARKER, Item, Source, displayed_size
from mixtransfer.datasets.stored import LEAST_ZERO, Unusable, count_labels, opened, read_mask
from mixtransfer.errors import UserError
from mixtransfer.progress import notice

__all__ = ["CONVERTED", "recognized", "standard_form", "write_standard"]

Progress = Callable[[int, int], None]
#: Where ``--data`` keeps what it converts.
CONVERTED = Path("data/converted")
#: The share of images for validation where a dataset has no split.
VALIDATION = 0.2
#: Numbers of classes that a mask of 8 bits can hold beside void.
MOST_CLASSES = 254
QUESTION = (
    "label 0 has {share:.0f}% of the pixels, the highest label is {top} and there are {count} names: say"
    " --zero-is-class if 0 is the first class, or --no-zero-is-class if 0 is void and classes count from 1"
)


def standard_form(
    root: Path, task: str, progress: Progress, zero_is_class: bool | None = None, cache: Path = CONVERTED
) -> Path | None:
    """Return a folder that has a foreign dataset in our layout; None where nothing is recognized in ``root``.

    It is written below ``cache`` once, with links to the images, and again when a file of the dataset has changed.

    Raises:
        UserError: a file cannot be used, or it cannot be told whether label 0 is a class.
    """
    source = recognize(root, task)
    if source is None:
        return None
    place = cache / f"{root.resolve().name}-{task}-{_digest(root, zero_is_class)}"
    if not (place / MARKER).is_file():
        write_standard(source, place, zero_is_class=zero_is_class, progress=progress)
    made = json.loads((place / MARKER).read_text(encoding="utf-8"))
    notice(f"{root}: {source.layout}, {made['said']}; in our layout in {place}")
    for note in source.notes:
        notice(f"{root}: {note}")
    return place


def _digest(root: Path, zero_is_class: bool | None) -> str:
    seen = hashlib.sha256(f"1 {zero_is_class}".encode())
    for path in sorted(root.rglob("*")):
        if path.is_file():
            stat = path.stat()
            seen.update(
                f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
    return seen.hexdigest()[:10]


def write_standard(
    source: Source,
    place: Path,
    *,
    zero_is_class: bool | None = None,
    copy: bool = False,
    share: float | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write a dataset in our layout, whole or not at all.

    Args:
        source: from :func:`~mixtransfer.datasets.layouts.recognize`.
        place: the folder, which must not be there.
        zero_is_class: whether label 0 of masks is a class; None: what the masks say.
        copy: copy images instead of linking them.
        share: draw a split with this share of the images for validation; None: the dataset's own if it has one.
        progress: called with files done and in all.

    Raises:
        UserError: a file cannot be used, or it cannot be told whether label 0 is a class.
    """
    source, said = _with_split(source, share)
    if place.exists():
        raise UserError(f"{place}: is there already; choose another folder")
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write = {"seg": _write_masks, "det": _write_instances, "cls": _write_classes}[source.task]
        more = write(source, partial, zero_is_class, copy, progress)
        made = {
            "source": str(source.root.resolve()),
            "layout": source.layout,
            "said": said + more.pop("said", ""),
            **more,
        }
        (partial / MARKER).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, place)
    except OSError as error:
        raise UserError(
            f"{place}: cannot be written: {error.strerror}; choose another place with data convert"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _with_split(source: Source, share: float | None) -> tuple[Source, str]:
    """Return the dataset with a split of every image, and what was done for it."""
    given = {item.split for item in source.items} - {""}
    if share is None and given == {"train", "val"}:
        items = tuple(replace(item, split=item.split or "train") for item in source.items)
        return replace(source, items=items), f"{_count(items)} as the dataset says"
    if len(source.items) < 2:
        raise UserError(f"{source.root}: {len(source.items)} images; training and validation need one each")
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(source.items):
        groups.setdefault(item.label, []).append(number)
    held: set[int] = set()
    for numbers in groups.values():
        # By name: the same images stay in validation when others are added.
        ranked = sorted(numbers, key=lambda k: hashlib.sha256(source.items[k].name.encode(errors="replace")).digest())
        held.update(ranked[: min(max(1, round(len(ranked) * (share or VALIDATION))), len(ranked) - 1)])
    items = tuple(
        replace(item, split="val" if number in held else "train", name=_unique(source, item, given))
        for number, item in enumerate(source.items)
    )
    return replace(source, items=items), f"{_count(items)}, drawn by their names"


def _unique(source: Source, item: Item, given: set[str]) -> str:
    """Two splits that become one may have an image of the same name."""
    return f"{item.split}/{item.name}" if len(given) > 1 and source.task != "cls" else item.name


def _count(items: Sequence[Item]) -> str:
    held = sum(item.split == "val" for item in items)
    return f"{len(items) - held} images for training and {held} for validation"


def _place(file: Path, target: Path, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() or target.is_symlink():
        raise UserError(f"{file}: another file of the dataset has the name {target.name}; rename one")
    if not copy:
        try:
            target.symlink_to(file.resolve())
            return
        except OSError:
            pass  # a file system without links
    shutil.copyfile(file, target)


# --- segmentation --------------------------------------------------------------------------------------------------


def _write_masks(
    source: Source, place: Path, zero_is_class: bool | None, copy: bool, progress: Progress
) -> dict[str, Any]:
    counts, total = np.zeros(256, np.int64), 2 * len(source.items)
    for done, item in enumerate(source.items, 1):
        counts += count_labels(_labels(source, item))
        progress(done, total)
    binary = not source.classes and counts[255] and not counts[1:255].any() and counts[0]
    if binary:
        counts[1], counts[255] = counts[255], 0
    zero, said = _zero(source, counts, zero_is_class)
    top = int(np.flatnonzero(counts[:255]).max(initial=0))
    names = source.classes or tuple(f"class_{k}" for k in range(0 if zero else 1, top + 1))
    if not 0 < len(names) <= MOST_CLASSES:
        raise UserError(f"{source.root}: {len(names)} classes in its masks; there may be 1 to {MOST_CLASSES}")
    for done, item in enumerate(source.items, 1):
        split, stem = {"train": "training", "val": "validation"}[item.split], Path(item.name).with_suffix("")
        _place(item.image, place / "images" / split / item.name, copy)
        target = place / "annotations" / split / f"{stem}.png"
        if item.mask is not None and item.mask.suffix.lower() == ".png" and not binary and _is_plain(source, item.mask):
            _place(item.mask, target, copy)
        else:
            labels = _labels(source, item)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise UserError(f"{item.image}: another image of the dataset has this name; rename one")
            Image.fromarray(np.where(labels == 255, 1, labels).astype(np.uint8) if binary else labels).save(target)
        progress(len(source.items) + done, total)
    colors = source.colors if len(source.colors) == len(names) else ()
    lines = [" ".join([name, *map(str, color)]) for name, color in zip(names, colors, strict=True)] if colors else names
    (place / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"zero_is_class": zero, "said": said}


def _zero(source: Source, counts: np.ndarray, asked: bool | None) -> tuple[bool, str]:
    """Return whether label 0 is a class, and how that is said.

    Raises:
        UserError: the masks leave it open.
    """
    top = int(np.flatnonzero(counts[:255]).max(initial=0))
    share = 100 * counts[0] / max(counts.sum(), 1)
    count = len(source.classes)
    if asked is not None or source.zero_is_class is not None or not counts[0]:
        zero = asked if asked is not None else bool(source.zero_is_class)
        return zero, f"; label 0 is {'the first class' if zero else 'void'}"
    if not count:
        zero = bool(share >= LEAST_ZERO)
        other = "--no-zero-is-class makes it void" if zero else "--zero-is-class makes it a class"
        return zero, f"; label 0, {share:.1f}% of the pixels, is {'a class' if zero else 'void'} ({other})"
    if top == count:
        return False, "; label 0 is void"
    if top == count - 1:
        return True, f"; labels are 0 to {top} for {count} names, so label 0 is the first class"
    raise UserError(f"{source.root}: {QUESTION.format(share=share, top=top, count=count)}")


def _is_plain(source: Source, mask: Path) -> bool:
    """Return whether a mask can stay as it is."""
    if source.stored:
        return False
    try:
        read_mask(mask)
    except Unusable:
        return False
    return True


def _labels(source: Source, item: Item) -> np.ndarray:
    """Return the labels of an image, (H, W) uint8.

    Raises:
        UserError: naming the mask.
    """
    if item.mask is None:
        return _painted(source, item)
    try:
        labels = read_mask(item.mask)
    except Unusable as error:
        if "several channels" not in error.kind:
            raise UserError(f"{item.mask}: {error}; see mixtransfer data check") from error
        labels = _by_color(source, item.mask)
    if source.stored:
        strange = np.setdiff1d(labels, list(source.stored)).tolist()
        if strange:
            raise UserError(f"{item.mask}: labels that {source.layout} does not have: {', '.join(map(str, strange))}")
        table = np.full(256, 255, np.uint8)
        table[list(source.stored)] = list(source.stored.values())
        labels = table[labels]
    return labels


def _by_color(source: Source, mask: Path) -> np.ndarray:
    with opened(mask, kind="mask") as image:
        pixels = np.asarray(image.convert("RGB"))
    if (pixels == pixels[..., :1]).all() and not source.colors:
        return pixels[..., 0].copy()
    values = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    found, places = np.unique(values, return_inverse=True)
    known = {(r << 16) + (g << 8) + b: k for k, (r, g, b) in enumerate(source.colors)}
    strange = [value for value in found.tolist() if value not in known]
    if strange:
        shown = ", ".join(f"{value >> 16} {value >> 8 & 255} {value & 255}" for value in strange[:8])
        if not source.colors:
            raise UserError(
                f"{mask}: the mask is in colors; write {source.root / 'classes.txt'} with a line a class, its name and"
                f" color, e.g. 'road 128 64 128'; colors here: {shown}"
            )
        raise UserError(f"{mask}: the color {shown} is of no class in classes.txt; add it there")
    table = np.array([known[value] for value in found.tolist()], np.uint8)
    return table[places.reshape(values.shape)]


def _painted(source: Source, item: Item) -> np.ndarray:
    height, width = displayed_size(item.image)
    picture = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(picture)
    for name, polygon in item.shapes:
        draw.polygon(list(polygon), fill=255 if name == IGNORED else source.classes.index(name))
    return np.asarray(picture)


# --- detection and classification ----------------------------------------------------------------------------------


def _write_instances(
    source: Source, place: Path, zero_is_class: bool | None, copy: bool, progress: Progress
) -> dict[str, Any]:
    categories = [{"id": k, "name": name} for k, name in enumerate(source.classes, 1)]
    folders = {"train": "train2017", "val": "val2017"}
    images: dict[str, list[dict[str, Any]]] = {split: [] for split in folders}
    for number, item in enumerate(source.items):
        if not item.image.is_file():
            raise UserError(f"{item.image}: no such image; add it or take it out of the annotations")
        _place(item.image, place / folders[item.split] / item.name, copy)
        height, width = displayed_size(item.image)
        images[item.split].append({"id": number + 1, "file_name": item.name, "height": height, "width": width})
        progress(number + 1, len(source.items))
    (place / "annotations").mkdir()
    for split, folder in folders.items():
        own = {image["id"] for image in images[split]}
        annotations = [
            {"iscrowd": 0, **a, "id": k, "image_id": a["image_id"] + 1, "category_id": a["category_id"] + 1}
            for k, a in enumerate(source.annotations, 1)
            if a["image_id"] + 1 in own
        ]
        for annotation in annotations:
            if "area" not in annotation and "bbox" in annotation:
                annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        content: Mapping[str, Any] = {"images": images[split], "annotations": annotations, "categories": categories}
        (place / "annotations" / f"instances_{folder}.json").write_text(json.dumps(content), encoding="utf-8")
    return {}


def _write_classes(
    source: Source, place: Path, zero_is_class: bool | None, copy: bool, progress: Progress
) -> dict[str, Any]:
    for done, item in enumerate(source.items, 1):
        _place(item.image, place / item.split / item.name, copy)
        progress(done, len(source.items))
    return {}


def recognized(root: Path) -> dict[str, Source]:
    """Return task -> description of everything that is recognized in a folder."""
    return {task: source for task in KNOWN if (source := recognize(root, task)) is not None}
