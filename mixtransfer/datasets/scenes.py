"""The built-in scenes: a seeded dataset of textured scenes with occlusion, in three layouts from one source.

``write_scenes(root)`` writes

- ``root/seg``, ADE20K's layout: ``images/{training,validation}/*.jpg``, ``annotations/{training,validation}/*.png``
  (0 is void, k the k-th line of ``classes.txt``); some things have a thin void border, as hand-drawn labels do;
- ``root/det``, COCO's layout with the things of the same images: polygons for whole instances, run lengths for those
  with holes or cut in pieces, and groups marked ``iscrowd``;
- ``root/cls``, ``{train,val}/<class>/*.png``: small pictures of one class each, the stuff and things of the scenes;
- ``root/scenes.json``, the parameters.

Every picture is drawn by a generator seeded with (seed, split, index), so it depends on nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mixtransfer.datasets.scene_rendering import STUFF, THINGS, blend, noise, paint_stuff, paint_thing
from mixtransfer.errors import UserError

__all__ = [
    "CLASSES",
    "Instance",
    "Scene",
    "SceneParameters",
    "draw_crop",
    "draw_scene",
    "foregrounds",
    "read_parameters",
    "write_scenes",
]

CLASSES = (*STUFF, *THINGS)
"""Names in label order: label ``k`` of a map is ``CLASSES[k - 1]``, 0 is void."""
CROP_SIZE = 64
MIN_AREA = 24
"""Instances with fewer visible pixels become void and are not annotated."""
GENERATOR = 3
"""Raised whenever the same parameters give other pictures."""

Progress = Callable[[int, int], None]
Rng = np.random.Generator


@dataclass(frozen=True)
class Instance:
    """The visible part of one thing, or of a group of the same thing: boolean mask (H, W) and label."""

    label: int
    mask: np.ndarray
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """RGB image (H, W, 3) uint8, label map (H, W) uint8 with 0 for void, and the instances on it."""

    image: np.ndarray
    labels: np.ndarray
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class SceneParameters:
    """The settings that decide every byte of a written dataset."""

    train: int
    val: int
    classify_train: int
    classify_val: int
    size: tuple[int, int]
    seed: int
    generator: int = GENERATOR


# --- drawing -------------------------------------------------------------------------------------------------------


def draw_scene(rng: Rng, size: tuple[int, int]) -> Scene:
    """Draw one scene of ``size`` (H, W): stuff in layers, zero to five things in front, some of them groups."""
    image, labels = _backdrop(rng, size)
    things = []
    for name, patch, center, crowd in _arrange(rng, size):
        coverage, color = _placed(patch, center, size)
        mask = coverage > 0.5
        if not _leaves_enough(mask, patch, things):
            continue
        drift = (0.1 * patch.shape[1], 0.14 * patch.shape[0])
        moved = cv2.warpAffine(coverage, np.float32([[1, 0, drift[0]], [0, 1, drift[1]]]), size[::-1])
        shadow = cv2.GaussianBlur(moved, (0, 0), 0.06 * patch.shape[0] + 0.5)
        image = blend(image * (1 - 0.4 * shadow)[..., None], color, coverage)
        things = [(label, part & ~mask, whole, was_crowd) for label, part, whole, was_crowd in things]
        things.append((CLASSES.index(name) + 1, mask, mask.sum(), crowd))
        labels[mask] = CLASSES.index(name) + 1
    if rng.random() < 0.25:
        name = ("grass", "sand", "water")[rng.integers(3)]
        coverage = _below(rng, size, rng.uniform(0.84, 0.95) * size[0], wave=0.05 * size[0])
        image = blend(image, paint_stuff(rng, name, size), coverage)
        things = [(label, part & (coverage <= 0.5), whole, crowd) for label, part, whole, crowd in things]
        labels[coverage > 0.5] = CLASSES.index(name) + 1
    for _, part, _, _ in things:
        if part.sum() < MIN_AREA:
            labels[part] = 0
    instances = tuple(Instance(label, part, crowd) for label, part, _, crowd in things if part.sum() >= MIN_AREA)
    for instance in instances:
        if rng.random() < 0.4:
            mask = instance.mask.astype(np.uint8)
            labels[cv2.dilate(mask, np.ones((3, 3))) != cv2.erode(mask, np.ones((3, 3)))] = 0
    return Scene(_expose(rng, image), labels, instances)


def draw_crop(rng: Rng, name: str, size: int = CROP_SIZE) -> np.ndarray:
    """Draw one picture (size, size, 3) uint8 of class ``name``: its texture, or the thing in front of any stuff."""
    return _draw_object(rng, name, size)[0]


def _draw_object(rng: Rng, name: str, size: int = CROP_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture, and the share of foreground (size, size) in it: the thing's, 1 for a texture."""
    shape = (size, size)
    if name in STUFF:
        return _expose(rng, paint_stuff(rng, name, shape)), np.ones(shape, np.float32)
    image, _ = _backdrop(rng, shape)
    patch = paint_thing(rng, name, rng.uniform(0.2, 0.52) * size)
    coverage, color = _placed(patch, (rng.uniform(0.4, 0.6, 2) * size), shape)
    return _expose(rng, blend(image, color, coverage)), coverage


def _backdrop(rng: Rng, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Stuff in layers from the far to the near: image (H, W, 3) float, labels (H, W)."""
    height, width = size
    names = list(rng.permutation(list(STUFF))[: rng.integers(2, 5)])
    if rng.random() < 0.6:
        names = ["sky", *[name for name in names if name != "sky"]]
    layers = [(names[0], np.ones(size, np.float32))]
    cuts = height * (np.arange(1, len(names)) + rng.uniform(-0.3, 0.3, len(names) - 1)) / len(names)
    if rng.random() < 0.4:
        name = "brick" if names[0] != "brick" and rng.random() < 0.7 else _other(rng, names[0])
        layers.append((name, _block(rng, size, cuts[0] if len(cuts) else height / 2)))
    for name, cut in zip(names[1:], cuts, strict=True):
        layers.append((name, _below(rng, size, cut, wave=0.0 if name == "brick" else 0.09 * height)))
    if len(cuts) and rng.random() < 0.35:
        layers.append((_other(rng, names[-1]), _path(rng, size, cuts[-1])))
    image, labels = np.zeros((height, width, 3), np.float32), np.zeros(size, np.uint8)
    for name, coverage in layers:
        image = blend(image, paint_stuff(rng, name, size), coverage)
        labels[coverage > 0.5] = CLASSES.index(name) + 1
    return image, labels


def _other(rng: Rng, name: str) -> str:
    names = [other for other in STUFF if other not in (name, "sky")]
    return names[rng.integers(len(names))]


def _below(rng: Rng, size: tuple[int, int], cut: float, wave: float) -> np.ndarray:
    """Coverage (H, W) of everything below a wavy, slightly sloping line."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    line = noise(rng, (1, size[1]), size[1] / 3, octaves=2) - 0.5
    return np.clip(y - cut - rng.normal(0, 0.06) * (x - size[1] / 2) - 2 * wave * line + 0.5, 0, 1)


def _block(rng: Rng, size: tuple[int, int], foot: float) -> np.ndarray:
    """Coverage of a building: an upright rectangle standing on the line y = ``foot``."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    left, wide = rng.uniform(-0.1, 0.7) * size[1], rng.uniform(0.2, 0.5) * size[1]
    top = foot - rng.uniform(0.2, 0.45) * size[0]
    inside = np.minimum(np.minimum(x - left, left + wide - x), y - top)
    return np.clip(inside + 0.5, 0, 1) * (y < foot + 0.2 * size[0])


def _path(rng: Rng, size: tuple[int, int], far: float) -> np.ndarray:
    """Coverage of a path that widens from the line y = ``far`` to the lower edge."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    depth = np.clip((y - far) / max(size[0] - far, 1), 0, 1)
    middle = (rng.uniform(0.2, 0.8) + rng.uniform(-0.4, 0.4) * depth) * size[1]
    half = (rng.uniform(0.02, 0.06) + rng.uniform(0.15, 0.35) * depth) * size[1]
    return np.clip(half - np.abs(x - middle) + 0.5, 0, 1) * (y > far)


def _arrange(rng: Rng, size: tuple[int, int]) -> list[tuple[str, np.ndarray, np.ndarray, bool]]:
    """Choose things as (name, patch, center (x, y), crowd), the far ones first; many stand in front of another."""
    unit = min(size) / 128
    chosen = []
    for _ in range(rng.choice(6, p=[0.05, 0.1, 0.2, 0.25, 0.25, 0.15])):
        name = list(THINGS)[rng.integers(len(THINGS))]
        if chosen and rng.random() < 0.5:
            _, beside, center, _ = chosen[rng.integers(len(chosen))]
            center = center + rng.uniform(-0.4, 0.4, 2) * beside.shape[0]
        else:
            center = rng.uniform((0.1, 0.25), (0.9, 0.9)) * size[::-1]
        depth = 0.7 + 0.6 * np.clip(center[1] / size[0], 0, 1)
        crowd = name != "tree" and rng.random() < 0.08
        patch = _group(rng, name, unit) if crowd else paint_thing(rng, name, rng.uniform(19, 34) * unit * depth)
        chosen.append((name, patch, center, crowd))
    return sorted(chosen, key=lambda thing: thing[2][1] + thing[1].shape[0] / 2)


def _group(rng: Rng, name: str, unit: float) -> np.ndarray:
    """A patch (S, S, 4) of six to ten small things of one class that stand close together."""
    side = int(52 * unit)
    color, coverage = np.zeros((side, side, 3), np.float32), np.zeros((side, side), np.float32)
    for _ in range(rng.integers(6, 11)):
        small = paint_thing(rng, name, rng.uniform(5.5, 8.5) * unit)
        where = side / 2 + np.clip(rng.normal(0, 0.22, 2), -0.36, 0.36) * side
        added, paint = _placed(small, where, (side, side))
        color, coverage = blend(color, paint, added), np.maximum(coverage, added)
    return np.dstack([color, coverage])


def _placed(patch: np.ndarray, center: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Put a patch on an empty canvas around ``center`` (x, y), clipped: coverage (H, W) and color (H, W, 3)."""
    canvas = np.zeros((*size, 4), np.float32)
    left, top = (round(c - s / 2) for c, s in zip(center, patch.shape[1::-1], strict=True))
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + patch.shape[1], size[1]), min(top + patch.shape[0], size[0])
    if x0 < x1 and y0 < y1:
        canvas[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas[..., 3], canvas[..., :3]


def _leaves_enough(mask: np.ndarray, patch: np.ndarray, things: list) -> bool:
    """Whether a new thing lies mostly in the image and leaves a third of each thing behind it."""
    if mask.sum() < max(0.55 * (patch[..., 3] > 0.5).sum(), MIN_AREA):
        return False
    return all((part & ~mask).sum() >= max(0.34 * whole, MIN_AREA) for _, part, whole, _ in things)


def _expose(rng: Rng, image: np.ndarray) -> np.ndarray:
    """Light, camera and noise: a gradient of light, a color cast, contrast, blur and grain; returns uint8."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    across = ((x / image.shape[1] - 0.5) * np.cos(angle) + (y / image.shape[0] - 0.5) * np.sin(angle)).astype(
        np.float32
    )
    cast = rng.uniform(0.82, 1.15) * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    image = image * cast * (1 + rng.uniform(0, 0.3) * across)[..., None]
    image = image.mean() + (image - image.mean()) * rng.uniform(0.75, 1.1)
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.8))
    return np.clip(image + rng.normal(0, rng.uniform(1, 5), image.shape), 0, 255).astype(np.uint8)


# --- writing -------------------------------------------------------------------------------------------------------


def write_scenes(
    root: str | Path,
    train: int = 400,
    val: int = 100,
    classify_train: int = 4800,
    classify_val: int = 240,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the scenes to ``root``, or leave them as they are if they were written with the same parameters.

    ``train`` and ``val`` count scenes of ``size`` (H, W), ``classify_*`` pictures of single classes. The dataset is
    written beside ``root`` and renamed, so ``root`` is never half a dataset. Scenes that only an older version of the
    generator tells apart are drawn anew; ``force`` replaces those with other parameters, never a folder that is not
    ours. ``progress(done, total)`` is called after each picture.

    Raises:
        UserError: impossible parameters, a folder that holds something else, or one that cannot be written.
    """
    root = Path(root)
    parameters = SceneParameters(train, val, classify_train, classify_val, tuple(size), seed)
    _check_parameters(parameters)
    present = read_parameters(root)
    if present == parameters:
        return root
    if present is None and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and holds no scenes of ours; name another folder")
    # Scenes that an older version of the program drew hold nothing that drawing them anew would lose.
    outdated = present is not None and replace(present, generator=GENERATOR) == parameters
    if present is not None and not outdated and not force:
        raise UserError(
            f"{root} holds scenes with other parameters ({_difference(present, parameters)}); name another folder, "
            f"or replace them: mixtransfer data scenes {root} --force"
        )
    beside = Path(os.path.abspath(root))
    partial = beside.with_name(f".{beside.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial, parameters, progress or (lambda done, total: None))
        _move_into_place(partial, root, parameters)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror}; name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def foregrounds(root: Path) -> Callable[[Sequence[Path]], list[np.ndarray]]:
    """Return the function that draws foreground maps (H, W) uint8 of pictures of single classes, by their files.

    Args:
        root: the folder ``cls`` of scenes that :func:`write_scenes` wrote.
    """
    parameters = read_parameters(root.parent)
    assert parameters is not None, f"{root.parent} holds no scenes"

    def make(files: Sequence[Path]) -> list[np.ndarray]:
        found = []
        for path in files:
            split = ("train", "val").index(path.relative_to(root).parts[0])
            index = int(path.stem) * len(CLASSES) + CLASSES.index(path.parent.name)
            _, share = _draw_object(np.random.default_rng([parameters.seed, 2 + split, index]), path.parent.name)
            found.append((255 * share).round().astype(np.uint8))
        return found

    return make


def read_parameters(root: str | Path) -> SceneParameters | None:
    """Return the parameters that the scenes in ``root`` were written with, None if there are no scenes.

    Raises:
        UserError: ``scenes.json`` is there but not as it was written.
    """
    path = Path(root) / "scenes.json"
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return SceneParameters(**{**stored, "size": tuple(stored["size"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged; remove {root} and write the scenes again") from error


def _check_parameters(parameters: SceneParameters) -> None:
    if min(parameters.train, parameters.val) < 1:
        raise UserError(f"--train {parameters.train} --val {parameters.val}: each split needs at least one scene")
    if min(parameters.classify_train, parameters.classify_val) < len(CLASSES):
        raise UserError(f"--classify-train and --classify-val need at least {len(CLASSES)} pictures, one a class")
    if min(parameters.size) < 48:
        raise UserError(f"--size {parameters.size[0]} {parameters.size[1]}: scenes need at least 48 pixels a side")
    if parameters.seed < 0:
        raise UserError(f"--seed {parameters.seed}: seeds start at 0")


def _difference(present: SceneParameters, wanted: SceneParameters) -> str:
    old, new = asdict(present), asdict(wanted)
    return ", ".join(f"{key} {old[key]} instead of {new[key]}" for key in new if old[key] != new[key])


def _move_into_place(partial: Path, root: Path, parameters: SceneParameters) -> None:
    """Rename ``partial`` to ``root``; another process that wrote the same scenes meanwhile is as good."""
    if root.exists() and read_parameters(root) != parameters:
        replaced = partial.with_name(f"{partial.name}-replaced")
        root.rename(replaced)
        partial.rename(root)
        shutil.rmtree(replaced)
    else:
        try:
            partial.rename(root)
        except OSError:
            if read_parameters(root) != parameters:
                raise


def _write(root: Path, parameters: SceneParameters, progress: Progress) -> None:
    total = parameters.train + parameters.val + parameters.classify_train + parameters.classify_val
    done = 0
    for split, (name, long_name, count) in enumerate(
        [("train", "training", parameters.train), ("val", "validation", parameters.val)]
    ):
        images, masks = root / "seg/images" / long_name, root / "seg/annotations" / long_name
        copies = root / "det" / f"{name}2017"
        for folder in (images, masks, copies):
            folder.mkdir(parents=True)
        coco = {"images": [], "annotations": [], "categories": _categories()}
        for index in range(count):
            scene = draw_scene(np.random.default_rng([parameters.seed, split, index]), parameters.size)
            jpeg = _encoded(".jpg", scene.image[..., ::-1], cv2.IMWRITE_JPEG_QUALITY, 93)
            (images / f"{index:06d}.jpg").write_bytes(jpeg)
            (copies / f"{index:06d}.jpg").write_bytes(jpeg)
            (masks / f"{index:06d}.png").write_bytes(_encoded(".png", scene.labels))
            _add_to_coco(coco, scene, index)
            done += 1
            progress(done, total)
        annotations = root / "det/annotations" / f"instances_{name}2017.json"
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(json.dumps(coco, separators=(",", ":")), encoding="utf-8")
    for split, (name, count) in enumerate([("train", parameters.classify_train), ("val", parameters.classify_val)]):
        for class_name in CLASSES:
            (root / "cls" / name / class_name).mkdir(parents=True)
        for index in range(count):
            class_name = CLASSES[index % len(CLASSES)]
            crop = draw_crop(np.random.default_rng([parameters.seed, 2 + split, index]), class_name)
            path = root / "cls" / name / class_name / f"{index // len(CLASSES):05d}.png"
            path.write_bytes(_encoded(".png", crop[..., ::-1]))
            done += 1
            progress(done, total)
    (root / "seg/classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    (root / "scenes.json").write_text(json.dumps(asdict(parameters), indent=1) + "\n", encoding="utf-8")


def _encoded(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, pixels, list(options))
    assert done, f"OpenCV could not encode {pixels.shape} {pixels.dtype} as {suffix}"
    return data.tobytes()


def _categories() -> list[dict]:
    """Things only; ids are the labels of the maps, so they do not start at 1."""
    return [{"id": CLASSES.index(name) + 1, "name": name, "supercategory": "thing"} for name in THINGS]


def _add_to_coco(coco: dict, scene: Scene, index: int) -> None:
    height, width = scene.labels.shape
    coco["images"].append({"id": index + 1, "file_name": f"{index:06d}.jpg", "height": height, "width": width})
    for instance in scene.instances:
        x, y, w, h = cv2.boundingRect(instance.mask.astype(np.uint8))
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": index + 1,
                "category_id": instance.label,
                "iscrowd": int(instance.crowd),
                "area": int(instance.mask.sum()),
                "bbox": [x, y, w, h],
                "segmentation": _segmentation(instance),
            }
        )


def _segmentation(instance: Instance) -> list | dict:
    """COCO's three encodings: polygon (one piece, no hole), plain run lengths (crowd), packed ones (all else)."""
    if instance.crowd:
        flat = instance.mask.flatten(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
        return {"size": list(instance.mask.shape), "counts": np.diff(edges, prepend=0).tolist()}
    # Traced at twice the size, the outline's pixels map to the corners between pixels, so that the polygon encloses
    # exactly the mask.
    twice = np.kron(instance.mask.astype(np.uint8), np.ones((2, 2), np.uint8))
    outlines, _ = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(outlines) > 1:
        packed = coco_mask.encode(np.asfortranarray(instance.mask.astype(np.uint8)))
        return {"size": list(instance.mask.shape), "counts": packed["counts"].decode("ascii")}
    corners = (outlines[0][:, 0] + 1) // 2
    corners = corners[np.any(corners != np.roll(corners, 1, 0), 1)]
    before, after = corners - np.roll(corners, 1, 0), np.roll(corners, -1, 0) - corners
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return [corners[turns].flatten().tolist()]
