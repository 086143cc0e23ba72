"""Datasets as other tools leave them, recognized and described; ``datasets/convert.py`` writes them as ours.

Recognized are images with masks (``train`` and ``val`` under any usual spelling, or flat; labels, palettes or colors),
COCO's JSON wherever it lies, Pascal VOC, Cityscapes, YOLO (boxes and polygons), LabelMe, and one folder a class. CVAT
and Roboflow export these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mixtransfer.datasets.annotated import (
    IMAGES,
    coco_source,
    labelme_source,
    split_lists,
    voc_homes,
    voc_source,
    yolo_source,
)
from mixtransfer.datasets.sources import Item, Source, folder_named, image_files, read_classes, split_folders
from mixtransfer.errors import UserError

__all__ = ["KNOWN", "recognize"]

KNOWN = {
    "seg": "images and masks (flat, or by train and val), Pascal VOC, Cityscapes, LabelMe",
    "det": "one COCO JSON with its images (or one for train and val), Pascal VOC, YOLO, LabelMe",
    "cls": "one folder a class",
}
MASKS = ("masks", "mask", "labels", "annotations", "annotation", "label", "gt", "SegmentationClass", "segmentation")
#: Ends of a mask's name after that of its image.
MASK_ENDS = ("", "_mask", "_masks", "-mask", "_label", "_labels", "_gt", "_seg", "_annotation", "_L")
#: What follows the name of a split where masks lie beside its folder of images, as in CamVid's ``trainannot``.
BESIDE = ("annot", "_annot", "_masks", "_mask", "_labels", "masks", "labels", "_gt")
#: Formats without losses, which masks may have.
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
#: Cityscapes: class -> label in ``labelIds``, in the order in which they are trained (cityscapesScripts, labels.py).
CITYSCAPES = {
    **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19},
    **{"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26},
    **{"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
}
#: Classes of Pascal VOC 2012's masks, whose label 0 is the first.
VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person"
    " pottedplant sheep sofa train tvmonitor"
).split()


def recognize(root: Path, task: str) -> Source | None:
    """Return the description of a dataset for ``task`` ("seg", "det" or "cls"); None where nothing is recognized.

    Raises:
        UserError: a dataset is recognized, and a file of it cannot be used.
    """
    readers = (coco_source, voc_source, yolo_source, labelme_source, _cityscapes, _voc_masks, _mask_folders, _classes)
    if not root.is_dir():
        return None
    return next((found for reader in readers if (found := reader(root, task)) is not None), None)


def _named(root: Path) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Return names and colors from ``classes.txt``, or from CVAT's ``labelmap.txt``."""
    if (root / "classes.txt").is_file():
        return read_classes(root / "classes.txt")
    if (root / "labelmap.txt").is_file():
        lines = (root / "labelmap.txt").read_text(encoding="utf-8-sig").splitlines()
        rows = [line.split(":") for line in lines if line.strip() and not line.startswith("#")]
        colors = [tuple(int(x) for x in row[1].split(",")) for row in rows if len(row) > 1 and row[1]]
        return tuple(row[0] for row in rows), tuple(colors) if len(colors) == len(rows) else ()
    return (), ()


def _cityscapes(root: Path, task: str) -> Source | None:
    images, masks = root / "leftImg8bit", root / "gtFine"
    if task != "seg" or not (images.is_dir() and masks.is_dir()):
        return None
    items, kinds = [], set()
    for split, folder in split_folders(images).items():
        for image in image_files(folder):
            name = image.relative_to(folder)
            stem = masks / folder.name / name.parent / image.stem.removesuffix("_leftImg8bit")
            found = [kind for kind in ("labelTrainIds", "labelIds") if Path(f"{stem}_gtFine_{kind}.png").is_file()]
            if not found:
                raise UserError(f"{image}: no {stem.name}_gtFine_labelIds.png in {stem.parent}; add it")
            kinds.add(found[0])
            items.append(Item(image, name.as_posix(), split, Path(f"{stem}_gtFine_{found[0]}.png")))
    if len(kinds) > 1:
        raise UserError(f"{masks}: some images have labelTrainIds and others have not; write them for all, or for none")
    trained = {label: k for k, label in enumerate(CITYSCAPES.values())}
    # Labels to 33; a license plate's, −1, is 255 in a file. Those that are not trained are void.
    stored = {**dict.fromkeys((*range(34), 255), 255), **trained} if kinds == {"labelIds"} else {}
    return Source("Cityscapes", task, root, tuple(items), tuple(CITYSCAPES), stored=stored, zero_is_class=True)


def _voc_masks(root: Path, task: str) -> Source | None:
    home = next((place for place in voc_homes(root) if (place / "SegmentationClass").is_dir()), None)
    if task != "seg" or home is None:
        return None
    images = {path.stem: path for path in image_files(home / "JPEGImages")}
    splits = split_lists(home / "ImageSets/Segmentation")
    items = []
    for mask in image_files(home / "SegmentationClass"):
        if splits and mask.stem not in splits:
            continue
        if mask.stem not in images:
            raise UserError(f"{mask}: no image of this name in {home / 'JPEGImages'}")
        items.append(Item(images[mask.stem], images[mask.stem].name, splits.get(mask.stem, ""), mask))
    if not items:
        return None
    names, colors = _named(home) if home != root else _named(root)
    official = not names and home.parent.name == "VOCdevkit"
    return Source("Pascal VOC", task, root, tuple(items), tuple(VOC) if official else names, colors, zero_is_class=True)


def _mask_folders(root: Path, task: str) -> Source | None:
    if task != "seg":
        return None
    pairs: list[tuple[str, Path, Path]] = []
    within, masks = folder_named(root, IMAGES), folder_named(root, MASKS)
    if within is not None and masks is not None:
        inner, outer = split_folders(within), split_folders(masks)
        pairs = [(split, inner[split], outer[split]) for split in inner if split in outer] or [("", within, masks)]
    for split, folder in split_folders(root).items() if not pairs else ():
        inside, labels = folder_named(folder, IMAGES), folder_named(folder, MASKS)
        if inside is not None and labels is not None:
            pairs.append((split, inside, labels))
            continue
        beside = folder_named(root, [f"{folder.name}{end}" for end in BESIDE])
        pairs += [(split, folder, beside if beside is not None else folder)]
    items = [item for pair in pairs or [("", root, root)] for item in _paired(*pair)]
    if not items:
        return None
    names, colors = _named(root)
    return Source("images and masks", task, root, tuple(items), names, colors)


def _paired(split: str, images: Path, masks: Path) -> list[Item]:
    """Return the images of a folder with their masks, which are in another one, or beside them under another name.

    Raises:
        UserError: an image has no mask, and others have.
    """
    labels: dict[str, Path] = {}
    for path in image_files(masks):
        if path.suffix.lower() in MASK_SUFFIXES:
            labels[path.relative_to(masks).with_suffix("").as_posix()] = path
    items, lonely = [], []
    pictures = image_files(images)
    # In one folder, photographs are those that a mask is named after.
    together = images == masks
    ends = [end for end in MASK_ENDS if end or not together]
    for image in pictures:
        stem = image.relative_to(images).with_suffix("").as_posix()
        found = [labels[stem + end] for end in ends if stem + end in labels]
        if together and not found and image.suffix.lower() in (".jpg", ".jpeg", ".webp") and stem in labels:
            found = [labels[stem]]
        if found:
            items.append(Item(image, image.relative_to(images).as_posix(), split, found[0]))
        elif not (together and _is_mask(stem)):
            lonely.append(image)
    used = {item.mask for item in items}
    lonely = [image for image in lonely if image not in used]
    if items and lonely:
        raise UserError(
            f"{len(lonely)} of {len(lonely) + len(items)} images in {images} have no mask in {masks}, first"
            f" {lonely[0].name}; add the masks or take the images away"
        )
    return items


def _is_mask(stem: str) -> bool:
    return bool(re.search("(" + "|".join(re.escape(end) for end in MASK_ENDS if end) + ")$", stem))


def _classes(root: Path, task: str) -> Source | None:
    if task != "cls":
        return None
    splits: Mapping[str, Path] = split_folders(root) or {"": root}
    items = []
    for split, place in splits.items():
        for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
            items += [
                Item(image, image.relative_to(place).as_posix(), split, label=folder.name)
                for image in image_files(folder)
            ]
    names = tuple(sorted({item.label for item in items}))
    return Source("one folder a class", task, root, tuple(items), names) if len(names) > 1 else None
