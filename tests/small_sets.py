"""Small datasets of colored rectangles in the layouts of ADE20K, COCO and ImageNet, written file by file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 48, 64
NAMES = ("ant", "bee", "cat")


def picture(rng: np.random.Generator, boxes: Sequence = ()) -> np.ndarray:
    """Noise with boxes of ((x, y, width, height), class), each class in its color."""
    image = rng.integers(60, 120, (H, W, 3)).astype(np.uint8)
    for (x, y, w, h), k in boxes:
        image[y : y + h, x : x + w] = 40 + 70 * k, 200 - 60 * k, 90 + 30 * k
    return image


def masks(
    root: Path,
    *,
    names: Sequence[str] | None = NAMES,
    background: int = 1,
    labels: Callable[[int], int] = lambda k: k + 1,
    save: Callable[[np.ndarray, Path], None] = lambda mask, path: Image.fromarray(mask).save(path),
    below: str = "",
    suffix: str = ".png",
    seed: int = 0,
) -> Path:
    """ADE20K's layout: four and two images; class 0 is the background, 1 and 2 the boxes."""
    rng = np.random.default_rng(seed)
    for split, count in (("training", 4), ("validation", 2)):
        folders = [root / part / split / below for part in ("images", "annotations")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            boxes = [((4 + i, 5, 20, 15), 1), ((30, 20 + i, 25, 20), 2)]
            mask = np.full((H, W), background, np.uint8)
            for (x, y, w, h), k in boxes:
                mask[y : y + h, x : x + w] = labels(k)
            Image.fromarray(picture(rng, boxes)).save(folders[0] / f"{i}.png")
            save(mask, folders[1] / f"{i}{suffix}")
    if names:
        (root / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return root


def coco(root: Path, edit: Callable[[dict], None] = lambda content: None, counts: tuple[int, int] = (4, 3)) -> Path:
    """COCO's layout: three boxes an image, one of each class; ``edit(content)`` changes each annotation file."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in zip(("train2017", "val2017"), counts, strict=True):
        (root / split).mkdir()
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [dict(id=k + 1, name=name) for k, name in enumerate(NAMES)]
        for i in range(count):
            boxes = [((2 + 3 * i, 3, 14, 12), 0), ((30, 4 + 2 * i, 16, 20), 1), ((8, 26, 30 - 2 * i, 18), 2)]
            Image.fromarray(picture(rng, boxes)).save(root / split / f"{i}.png")
            content["images"].append(dict(id=i + 1, file_name=f"{i}.png", height=H, width=W))
            for (x, y, w, h), k in boxes:
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                content["annotations"].append(
                    dict(id=len(content["annotations"]) + 1, image_id=i + 1, category_id=k + 1, bbox=[x, y, w, h])
                    | dict(area=w * h, iscrowd=0, segmentation=[polygon])
                )
        edit(content)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def class_folders(root: Path, names: Sequence[str] = NAMES) -> Path:
    """One folder a class: three and two images each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for k, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(rng, [((5, 5, 40, 30), k)])).save(root / split / name / f"{i}.png")
    return root


def turned(image: np.ndarray, tag: int, path: Path) -> None:
    """Store an image so that its orientation tag turns it back, as phones do."""
    operations = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(image).transpose(operations[tag]).save(path, exif=exif)
