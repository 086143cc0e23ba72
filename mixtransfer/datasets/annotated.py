"""Readers of datasets whose instances stand in text files: those of COCO, Pascal VOC, YOLO and LabelMe."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from mixtransfer.datasets.coco import category_names, image_exists, image_names, read_coco
from mixtransfer.datasets.sources import (
    Item,
    Source,
    displayed_size,
    folder_named,
    image_files,
    polygon_box,
    split_folders,
    split_of,
)
from mixtransfer.errors import UserError

__all__ = ["coco_source", "labelme_source", "voc_source", "yolo_source"]

IMAGES = ("images", "imgs", "img", "image", "JPEGImages", "photos")
#: LabelMe's own conventions: pixels of no shape, and shapes to leave out.
BACKGROUND, IGNORED = "_background_", "__ignore__"
#: Corners of the polygon that stands for a circle.
CORNERS = 32


# --- COCO ----------------------------------------------------------------------------------------------------------


def coco_source(root: Path, task: str) -> Source | None:
    """Read COCO's JSON files that lie in a folder, in ``annotations`` or beside the images of each split."""
    if task != "det":
        return None
    places = [root, *(path for path in (folder_named(root, ("annotations", "annotation")),) if path)]
    places += split_folders(root).values()
    files = [file for place in places for file in sorted(place.glob("*.json")) if _is_coco(file)]
    words = {file: _split_in(file, root) for file in files}
    if any(words.values()):
        # Files of other splits, of captions or keypoints stay out.
        files = [file for file in files if words[file]]
    if not files:
        return None
    if len({words[file] for file in files}) < len(files):
        raise UserError(f"{root}: several COCO files for one split ({', '.join(f.name for f in files[:4])}); keep one")
    items: list[Item] = []
    annotations: list[dict[str, Any]] = []
    classes: list[str] = []
    for file in files:
        content = read_coco(file)
        classes += [name for name in category_names(content) if name not in classes]
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        folder = _images_of(content, file, root, words[file])
        numbers = {}
        for image in content["images"]:
            numbers[image["id"]] = len(items)
            items.append(Item(folder / str(image["file_name"]), str(image["file_name"]), words[file]))
        for annotation in content["annotations"]:
            place, name = numbers.get(annotation.get("image_id")), names.get(annotation.get("category_id"))
            if place is None or name is None:
                raise UserError(
                    f"{file}: annotation {annotation.get('id')} names an image or category that is not listed"
                )
            annotations.append({**annotation, "image_id": place, "category_id": classes.index(name)})
    used = {annotation["category_id"] for annotation in annotations}
    # Roboflow writes a category that only stands above the others.
    kept = [k for k, name in enumerate(classes) if k in used or len(used) == 0]
    left = [name for k, name in enumerate(classes) if k not in kept]
    annotations = [{**a, "category_id": kept.index(a["category_id"])} for a in annotations]
    notes = (f"categories without an instance are left out: {', '.join(left[:10])}",) if left else ()
    names = tuple(classes[k] for k in kept)
    return Source("COCO's JSON", task, root, tuple(items), names, annotations=tuple(annotations), notes=notes)


def _is_coco(file: Path) -> bool:
    with open(file, "rb") as opened:
        head = opened.read(1 << 16)
    if head.lstrip()[:1] != b"{":
        return False
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(
        isinstance(content.get(k), list) for k in ("images", "annotations", "categories")
    )


def _split_in(file: Path, root: Path) -> str:
    words = file.stem.lower().replace("-", "_").split("_")
    found = next((split_of(word) for word in words if split_of(word)), "")
    return found or ("" if file.parent == root else split_of(file.parent.name))


def _images_of(content: Mapping, file: Path, root: Path, split: str) -> Path:
    """Return the folder in which a COCO file's images lie."""
    names = list(image_names(content))
    within = folder_named(root, IMAGES)
    places = [file.parent, root, *split_folders(root).values()]
    if split in split_folders(root):
        places.insert(0, split_folders(root)[split])
    places += [path for path in (within, *(split_folders(within).values() if within else ())) if path]
    for place in places:
        if names and all(image_exists(place, name) for name in names):
            return place
    best = max(places, key=lambda place: sum(image_exists(place, name) for name in names))
    lost = next((name for name in names if not image_exists(best, name)), "none")
    raise UserError(f"{file}: its images are in no folder of {root}, first {lost} (nearest: {best})")


# --- Pascal VOC ----------------------------------------------------------------------------------------------------


def voc_source(root: Path, task: str) -> Source | None:
    """Read Pascal VOC's boxes (``Annotations/*.xml``), also where XML files lie beside the images of each split."""
    if task != "det":
        return None
    home = next((place for place in voc_homes(root) if any((place / "Annotations").glob("*.xml"))), None)
    items: list[Item] = []
    files: list[Path] = []
    if home is not None:
        images = {path.stem: path for path in image_files(home / "JPEGImages")}
        splits = split_lists(home / "ImageSets/Main")
        for file in sorted((home / "Annotations").glob("*.xml")):
            if splits and file.stem not in splits:
                continue
            if file.stem not in images:
                raise UserError(f"{file}: no image of this name in {home / 'JPEGImages'}")
            files.append(file)
            items.append(Item(images[file.stem], images[file.stem].name, splits.get(file.stem, "")))
    else:
        for place, split in [(root, ""), *((path, split) for split, path in split_folders(root).items())]:
            for image in image_files(place) if place != root or not split_folders(root) else []:
                file = image.with_suffix(".xml")
                if file.is_file():
                    files.append(file)
                    items.append(Item(image, image.relative_to(place).as_posix(), split))
    if not files:
        return None
    annotations, classes = [], set()
    for number, file in enumerate(files):
        for name, box, difficult in _voc_objects(file):
            classes.add(name)
            annotations.append({"image_id": number, "category": name, "bbox": box, "ignore": int(difficult)})
    names = tuple(sorted(classes))
    annotations = [{**a, "category_id": names.index(a.pop("category"))} for a in annotations]
    for annotation in annotations:
        if not annotation["ignore"]:
            del annotation["ignore"]
    return Source("Pascal VOC", task, root, tuple(items), names, annotations=tuple(annotations))


def voc_homes(root: Path) -> list[Path]:
    """Return the folders, from the root down to ``VOCdevkit/VOC2012``, that have ``JPEGImages``."""
    below = [root, *(path for path in sorted(root.glob("*")) if path.is_dir())]
    below += [path for place in below[1:] for path in sorted(place.glob("*")) if path.is_dir()]
    return [place for place in below if (place / "JPEGImages").is_dir()]


def split_lists(folder: Path) -> dict[str, str]:
    """Return name -> split of the lists ``train.txt`` and ``val.txt`` (or only ``trainval.txt``) in a folder."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
        if split_of(file.stem):
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    found[Path(line.split()[0]).stem] = split_of(file.stem)
    return found


def _voc_objects(file: Path) -> Iterator[tuple[str, list[float], bool]]:
    """Yield class, box (x, y, width, height) and whether it is marked difficult.

    VOC counts pixels from 1 and includes the last one; what other tools write may begin at 0.
    """
    try:
        tree = ElementTree.parse(file).getroot()
        for part in tree.iter("object"):
            corners = part.find("bndbox")
            if corners is None:
                continue
            left, top, right, bottom = (float(corners.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            box = [max(left - 1, 0), max(top - 1, 0), right - max(left - 1, 0), bottom - max(top - 1, 0)]
            yield (part.findtext("name") or "").strip(), box, (part.findtext("difficult") or "0").strip() == "1"
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{file}: no Pascal VOC annotation ({error}); mend or remove it") from error


# --- YOLO ----------------------------------------------------------------------------------------------------------


def yolo_source(root: Path, task: str) -> Source | None:
    """Read YOLO's text files: boxes and polygons in shares of the image, ``labels`` beside ``images``."""
    if task != "det":
        return None
    settings, folders = _yolo_folders(root)
    if not folders:
        return None
    items, annotations, numbers, polygons = [], [], set(), False
    for split, images, labels in folders:
        for image in image_files(images):
            name = image.relative_to(images)
            file = (labels / name).with_suffix(".txt")
            height, width = displayed_size(image)
            for line, words in _yolo_lines(file):
                number, shape = int(words[0]), words[1:]
                scaled = [value * (height if k % 2 else width) for k, value in enumerate(shape)]
                if len(shape) == 4:
                    x, y, w, h = scaled
                    entry = {"bbox": [x - w / 2, y - h / 2, w, h]}
                elif len(shape) >= 6 and len(shape) % 2 == 0:
                    entry, polygons = {"bbox": polygon_box([scaled]), "segmentation": [scaled]}, True
                else:
                    raise UserError(
                        f"{file}, line {line}: {len(words)} numbers; a class and a box or polygon have 5, 7, 9, …"
                    )
                numbers.add(number)
                annotations.append({"image_id": len(items), "category_id": number, **entry})
            items.append(Item(image, name.as_posix(), split))
    if not annotations:
        return None
    if polygons:
        for entry in annotations:
            if "segmentation" not in entry:
                x, y, w, h = entry["bbox"]
                entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    names = _yolo_names(root, settings) or tuple(f"class_{k}" for k in range(max(numbers) + 1))
    if max(numbers) >= len(names):
        raise UserError(f"{root}: class {max(numbers)} occurs, and {len(names)} names are given; add the others")
    return Source("YOLO", task, root, tuple(items), names, annotations=tuple(annotations))


def _yolo_folders(root: Path) -> tuple[Mapping[str, Any], list[tuple[str, Path, Path]]]:
    """Return the settings of ``data.yaml`` and, of each split, the folders of images and of text files."""
    settings: Mapping[str, Any] = {}
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(content, Mapping) and "names" in content:
            settings = content
            break
    places: list[tuple[str, Path]] = []
    within = folder_named(root, IMAGES)
    inside = split_folders(within) if within else {}
    for split in ("train", "val"):
        stated = settings.get(split)
        candidates = [root / str(settings.get("path", "")) / stated, root / stated] if isinstance(stated, str) else []
        # Roboflow's files name folders beside that of data.yaml.
        candidates += [root / stated.removeprefix("../")] if isinstance(stated, str) else []
        candidates += [inside[split]] if split in inside else []
        outer = split_folders(root).get(split)
        candidates += [path for path in (outer and folder_named(outer, IMAGES),) if path]
        place = next((path for path in candidates if path.is_dir()), None)
        if place is not None:
            places.append((split, place))
    if not places and within is not None:
        places.append(("", within))
    found = []
    for split, images in places:
        parts = list(images.parts)
        for k in reversed(range(len(parts))):
            if parts[k].lower() in [name.lower() for name in IMAGES]:
                labels = Path(*parts[:k], "labels", *parts[k + 1 :])
                if labels.is_dir() and any(labels.rglob("*.txt")):
                    found.append((split, images, labels))
                break
    return settings, found


def _yolo_lines(file: Path) -> Iterator[tuple[int, list[float]]]:
    if not file.is_file():
        # An image without a file has no instances.
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            words = [float(word) for word in line.split()]
            if not all(map(math.isfinite, words)) or words[0] < 0 or words[0] != int(words[0]):
                raise ValueError
        except ValueError:
            raise UserError(f"{file}, line {number}: no class and shares of the image: {line[:60]!r}") from None
        yield number, words


def _yolo_names(root: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    names = settings.get("names")
    if isinstance(names, Mapping):
        return tuple(str(names.get(k, f"class_{k}")) for k in range(max(map(int, names)) + 1))
    if isinstance(names, list):
        return tuple(map(str, names))
    for file in (root / "classes.txt", root / "obj.names", root / "labels/classes.txt"):
        if file.is_file():
            return tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    return ()


# --- LabelMe -------------------------------------------------------------------------------------------------------


def labelme_source(root: Path, task: str) -> Source | None:
    """Read LabelMe's JSON files, which lie beside their images; shapes become instances, or are painted in order."""
    if task == "cls":
        return None
    items, annotations, classes = [], [], set()
    places = split_folders(root) or {"": root}
    for split, place in places.items():
        for file in sorted(place.rglob("*.json")):
            content = _labelme(file)
            if content is None:
                continue
            image = file.parent / Path(str(content.get("imagePath") or "").replace("\\", "/")).name
            if not image.is_file():
                image = next((path for path in image_files(file.parent) if path.stem == file.stem), image)
            if not image.is_file():
                raise UserError(f"{file}: its image {image.name} is not there; put it beside the file")
            shapes = []
            for shape in content["shapes"]:
                name, polygon = str(shape.get("label")), _polygon(shape)
                if polygon is None:
                    continue
                shapes.append((name, polygon))
                if name != IGNORED:
                    classes.add(name)
                    annotations.append(
                        {
                            "image_id": len(items),
                            "category": name,
                            "bbox": polygon_box([polygon]),
                            "segmentation": [list(polygon)],
                        }
                    )
            items.append(Item(image, image.relative_to(place).as_posix(), split, shapes=tuple(shapes)))
    if not items or not classes:
        return None
    names = tuple(sorted(classes - {BACKGROUND}))
    if task == "seg":
        return Source("LabelMe", task, root, tuple(items), (BACKGROUND, *names), zero_is_class=True)
    kept = [a for a in annotations if a["category"] != BACKGROUND]
    kept = [{**a, "category_id": names.index(a.pop("category"))} for a in kept]
    return Source("LabelMe", task, root, tuple(items), names, annotations=tuple(kept))


def _labelme(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError):
        return None
    shapes = content.get("shapes") if isinstance(content, dict) else None
    return content if isinstance(shapes, list) and all(isinstance(shape, dict) for shape in shapes) else None


def _polygon(shape: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the polygon [x, y, …] of a shape with an area; None of points and lines."""
    kind, points = shape.get("shape_type") or "polygon", shape.get("points") or []
    try:
        corners: Sequence[tuple[float, float]] = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError):
        return None
    if kind == "rectangle" and len(corners) >= 2:
        (left, top), (right, bottom) = corners[0], corners[1] if len(corners) == 2 else corners[2]
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind == "circle" and len(corners) == 2:
        (x, y), radius = corners[0], math.dist(*corners)
        angles = [2 * math.pi * k / CORNERS for k in range(CORNERS)]
        corners = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    elif kind != "polygon" or len(corners) < 3:
        return None
    return tuple(value for corner in corners for value in corner)
