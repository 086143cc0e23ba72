"""Maps that accompany images: their foreground, or the best classes of every cell, in step with crop and flip.

The map of an image ``ROOT/train/CLASS/NAME.jpg`` is the file ``ROOT/FOLDER/train/CLASS/NAME`` with another suffix:

* ``.png``, gray of 8 bits and any size: the share of foreground, 255 for all (BigBiGAN's masks, arXiv 2006.04988);
* ``.npy`` or ``.pt``, (2, R, h, w): scores and numbers of the R best classes of each cell of the whole image, the form
  of ReLabel (arXiv 2101.05022), TokenLabeling (arXiv 2104.10858) and OAMixer (arXiv 2212.06595, generate_relabel.py).

:class:`TracePixels` records where in the image each pixel of the crop lies: it sends the places through the transforms
that move pixels; :class:`LoadMap` reads the map there. So a map is resampled once, whatever moved the image.

Shapes: H × W crop, h × w cells of a map or of a grid, R best classes of a cell, K classes.
"""

from __future__ import annotations

import os
import pickle
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform

from mixtransfer.datasets.sources import image_files
from mixtransfer.datasets.stored import Unusable, read_mask
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.registry import TRANSFORMS

__all__ = [
    "KINDS",
    "LoadMap",
    "SwapBackground",
    "TracePixels",
    "class_scores",
    "in_step",
    "map_file",
    "read_foreground",
]

#: Transforms that move pixels, and those that change colors only; others cannot be followed.
MOVING = (
    *("RandomResizedCrop", "EfficientNetRandomCrop", "RandomCrop", "CenterCrop", "EfficientNetCenterCrop"),
    *("Resize", "ResizeEdge", "RandomFlip", "Rotate", "Shear", "Translate"),
)
COLORING = (
    *("AutoContrast", "Invert", "Equalize", "Solarize", "SolarizeAdd", "Posterize", "Contrast", "ColorTransform"),
    *("Brightness", "Sharpness", "GaussianBlur", "ColorJitter", "Lighting"),
)
#: Third channel of the places: a number that no padding has, so that what comes in from outside shows.
INSIDE = 1000.0
#: Kinds of maps -> suffixes of their files.
KINDS = {"foreground": (".png",), "classes": (".npy", ".pt"), "own_class": (".npy", ".pt")}
#: Points along a side of a cell at which scores are read.
POINTS = 2


def in_step(operation: Any, results: dict, other: dict) -> tuple[dict, dict]:
    """Apply a transform to a sample, and what it moves to another one of the same size, with the same random choices.

    Args:
        operation: a transform that moves pixels or changes colors, or mmpretrain's ``RandAugment`` of such ones.
        results: the sample, with ``img``.
        other: the other sample; colors are left as they are.
    """
    name = type(operation).__name__
    if name == "RandAugment":
        for index in operation.random_policy_indices():
            results, other = in_step(operation.transforms[index], results, other)
        return results, other
    # mmcv's own cache of random choices counts those of derived transforms twice, and stops.
    before = random.getstate(), np.random.get_state()
    results = operation(results)
    if name in MOVING:
        after = random.getstate(), np.random.get_state()
        _draw_from(before)
        with _for_numbers(operation, other["img"]):
            other = operation(other)
        _draw_from(after)
    return results, other


def _draw_from(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])


@contextmanager
def _for_numbers(operation: Any, image: np.ndarray) -> Iterator[None]:
    """Let a transform take floats, which Pillow does not, without a cubic kernel, whose weights are negative too."""
    wanted = {"backend": "cv2", "interpolation": "bilinear"} if image.dtype != np.uint8 else {}
    before = {name: getattr(operation, name) for name in wanted if hasattr(operation, name)}
    vars(operation).update({name: wanted[name] for name in before})
    try:
        yield
    finally:
        vars(operation).update(before)


@TRANSFORMS.register_module()
class TracePixels(BaseTransform):
    """Apply transforms to an image, and record where each of its pixels lay before.

    The sample gets ``places`` (H, W, 2) float32: x and y as shares of the sides of the image that came in, NaN for
    pixels from outside of it.

    Args:
        transforms: configs of transforms that move pixels or change colors, and of mmpretrain's ``RandAugment``.

    Raises:
        UserError: a transform that cannot be followed.
    """

    def __init__(self, transforms: Sequence[dict]):
        self.transforms = [TRANSFORMS.build(step) for step in transforms]
        for step in self.transforms:
            inside = step.transforms if type(step).__name__ == "RandAugment" else [step]
            unknown = [type(part).__name__ for part in inside if type(part).__name__ not in (*MOVING, *COLORING)]
            if unknown:
                raise UserError(f"TracePixels: cannot follow {unknown[0]}; put it before or behind")

    def transform(self, results: dict) -> dict:
        """Return ``results`` transformed, with ``places``."""
        height, width = results["img"].shape[:2]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        places = np.dstack([(x + 0.5) / width, (y + 0.5) / height, np.full_like(x, INSIDE)])
        traced = {"img": places, "img_shape": (height, width)}
        for step in self.transforms:
            results, traced = in_step(step, results, traced)
        inside = np.abs(traced["img"][..., 2:] - INSIDE) < 1
        results["places"] = np.where(inside, traced["img"][..., :2], np.float32(np.nan))
        return results


def map_file(image: str | Path, root: str | Path, folder: str, kind: str) -> Path:
    """Return the file of an image's map, which need not be there: with the kind's first suffix then.

    Raises:
        UserError: the image does not lie in ``root``.
    """
    inside = os.path.relpath(image, root)
    if inside.startswith(os.pardir):
        raise UserError(f"{image} does not lie in {root}, and its map not in {root}/{folder}; set data_root")
    files = [(Path(root) / folder / inside).with_suffix(suffix) for suffix in KINDS[kind]]
    return next((path for path in files if path.is_file()), files[0])


@TRANSFORMS.register_module()
class LoadMap(BaseTransform):
    """Read the map of an image where the crop shows it; :class:`TracePixels` comes before.

    * ``"foreground"`` gives ``patch_labels`` (1, H, W), the share of foreground in every pixel, 0 outside of the image;
    * ``"classes"`` gives ``patch_labels`` (K, h, w), scores of all classes in every cell of the grid, 0 for those that
      are not among the best;
    * ``"own_class"`` gives ``activation_map`` (h, w), the scores of the image's own class; negative ones count as 0.

    ``PackInputs(algorithm_keys=[...])`` passes them on.

    Args:
        kind: one of these.
        folder: the folder of the maps inside ``data_root``, e.g. ``"maps/foreground"``.
        data_root: the folder that the images' split lies in; ``--data`` sets it.
        cell_size: side in pixels of the cells of the grid.
        num_classes: the classes K; ``--data`` sets it.

    Raises:
        UserError: naming a map that is missing or cannot be used.
    """

    def __init__(self, kind: str, folder: str, data_root: str, cell_size: int = 16, num_classes: int = 1000):
        if kind not in KINDS:
            raise unknown_name("kind of map", kind, KINDS)
        self.kind, self.folder, self.data_root = kind, folder, data_root
        self.cell_size, self.num_classes = cell_size, num_classes

    def transform(self, results: dict) -> dict:
        """Return ``results`` with the map."""
        if "places" not in results:
            raise UserError("LoadMap: put TracePixels, with the transforms that move pixels, before it")
        path = map_file(results["img_path"], self.data_root, self.folder, self.kind)
        places = results["places"]
        if self.kind == "foreground":
            results["patch_labels"] = torch.from_numpy(foreground_at(read_foreground(path), places)[None])
            return results
        scores, classes = read_classes(path, self.num_classes)
        grid = -(-places.shape[0] // self.cell_size), -(-places.shape[1] // self.cell_size)
        if self.kind == "own_class":
            own = scores.clip(min=0) * (classes == int(results["gt_label"]))
            found = class_scores(own, np.zeros_like(classes), places, grid, 1)[0]
            results["activation_map"] = torch.from_numpy(found)
        else:
            found = class_scores(scores, classes, places, grid, self.num_classes)
            results["patch_labels"] = torch.from_numpy(found)
        return results


def read_foreground(path: Path) -> np.ndarray:
    """Return the share of foreground (H, W) float32, from 0 to 1, that a gray picture holds.

    Raises:
        UserError: no such picture.
    """
    try:
        stored = read_mask(path)
    except Unusable as error:
        raise _useless(path, error) from error
    if stored.max() == 1:
        raise UserError(f"{path}: holds 0 and 1 only; full foreground is 255")
    return stored.astype(np.float32) / 255


def read_classes(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (R, h, w) float32 and class numbers (R, h, w) int64 of the best classes of each cell.

    Raises:
        UserError: no file of such a map, or numbers that are none of the classes.
    """
    try:
        if path.suffix == ".pt":
            content = np.asarray(torch.load(path, map_location="cpu", weights_only=True), dtype=np.float32)
        else:
            content = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise _useless(path, error) from error
    if content.ndim != 4 or content.shape[0] != 2 or not np.isfinite(content).all():
        raise UserError(f"{path}: has shape {content.shape} or no numbers; a map of classes is (2, R, h, w)")
    scores, classes = content[0], content[1].astype(np.int64)
    if classes.min() < 0 or classes.max() >= num_classes:
        raise UserError(f"{path}: class number {classes.max()} of {num_classes} classes; make the maps with this data")
    return scores, classes


def _useless(path: Path, error: Exception) -> UserError:
    said = str(error).partition("\n")[0] if path.is_file() else "no such map"
    return UserError(f"{path}: {said}; mixtransfer data maps writes maps")


def foreground_at(share: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the shares (H, W) of a map (h, w) at places (H, W, 2), read bilinearly; 0 outside."""
    where = places * np.float32(share.shape[::-1]) - np.float32(0.5)
    found = cv2.remap(share, np.nan_to_num(where), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(np.isnan(places[..., 0]), np.float32(0), found)


def class_scores(
    scores: np.ndarray, classes: np.ndarray, places: np.ndarray, grid: tuple[int, int], num_classes: int
) -> np.ndarray:
    """Return the scores (K, h, w) float32 of all classes on the grid of a crop.

    A cell is the mean of :data:`POINTS` × :data:`POINTS` points, which are read bilinearly; outside of the image scores
    are 0.

    Args:
        scores: (R, rows, columns), of the best classes of each cell of the whole image.
        classes: (R, rows, columns), their numbers.
        places: (H, W, 2), of the crop's pixels.
        grid: cells (h, w) of the crop.
        num_classes: the classes K.
    """
    rows, columns = scores.shape[1:]
    points = _points(places, (POINTS * grid[0], POINTS * grid[1]))
    inside = ~np.isnan(points[..., 0])
    where = np.nan_to_num(points) * np.float32([columns, rows]) - np.float32(0.5)
    low = np.floor(where).astype(np.int64)
    part = where - low
    cell = (np.arange(POINTS * grid[0]) // POINTS * grid[1])[:, None] + np.arange(POINTS * grid[1]) // POINTS
    total = np.zeros(num_classes * grid[0] * grid[1])
    for right in (0, 1):
        for below in (0, 1):
            weight = np.abs(1 - right - part[..., 0]) * np.abs(1 - below - part[..., 1]) * inside / POINTS**2
            row, column = (low[..., 1] + below).clip(0, rows - 1), (low[..., 0] + right).clip(0, columns - 1)
            index = classes[:, row, column] * (grid[0] * grid[1]) + cell
            total += np.bincount(index.ravel(), (scores[:, row, column] * weight).ravel(), len(total))
    return total.reshape(num_classes, *grid).astype(np.float32)


def _points(places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the mean place (h, w, 2) of each cell of a crop, NaN where most of it lies outside of the image."""
    inside = ~np.isnan(places[..., :1])
    stacked = np.concatenate([np.nan_to_num(places), inside.astype(np.float32)], axis=2)
    small = cv2.resize(stacked, size[::-1], interpolation=cv2.INTER_AREA)
    share = small[..., 2:]
    return np.where(share >= 0.5, small[..., :2] / np.maximum(share, 0.5), np.float32(np.nan))


@TRANSFORMS.register_module()
class SwapBackground(BaseTransform):
    """Put the foreground of an image in front of another one's background: Mixed-Rand (Xiao et al., arXiv 2006.09994).

    The other image is any of ``images`` whose foreground covers less than 90% of it, the same one in every run; its own
    foreground is painted over from around (Telea's method). Comes right after the image is loaded.

    Args:
        images: the folder of the other images.
        folder: the folder of the foreground maps inside ``data_root``.
        data_root: the folder that the images' split lies in.
        seed: another seed takes other backgrounds.
    """

    #: Share of foreground from which on an image has no background to take.
    FULL = 0.9
    #: Pixels around a place that is painted over which its colors come from.
    RADIUS = 3

    def __init__(self, images: str, folder: str, data_root: str, seed: int = 0):
        self.folder, self.data_root, self.seed = folder, data_root, seed
        self.images = [str(path) for path in image_files(Path(images))]

    def transform(self, results: Mapping) -> dict:
        """Return ``results`` with another background in ``img``."""
        image, path = results["img"], str(results["img_path"])
        size = image.shape[1::-1]
        share = cv2.resize(self.foreground(path), size, interpolation=cv2.INTER_LINEAR)[..., None]
        key = zlib.crc32(os.path.relpath(path, self.data_root).encode("utf-8", "surrogateescape"))
        for number in np.random.default_rng([self.seed, key]).permutation(len(self.images)):
            other = self.images[number]
            hidden = self.foreground(other)
            if hidden.mean() < self.FULL and not os.path.samefile(other, path):
                background = cv2.imread(other, cv2.IMREAD_COLOR)
                if hidden.shape != background.shape[:2]:
                    hidden = cv2.resize(hidden, background.shape[1::-1], interpolation=cv2.INTER_LINEAR)
                # A margin, since edges are blurred.
                mask = cv2.dilate((hidden > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
                background = cv2.resize(cv2.inpaint(background, mask, self.RADIUS, cv2.INPAINT_TELEA), size)
                mixed = share * image + (1 - share) * background
                return {**results, "img": mixed.round().astype(np.uint8)}
        raise UserError(f"{self.data_root}/{self.folder}: no image has a background; nothing can be swapped")

    def foreground(self, path: str) -> np.ndarray:
        """Return the share of foreground (H, W) of an image."""
        return read_foreground(map_file(path, self.data_root, self.folder, "foreground"))
