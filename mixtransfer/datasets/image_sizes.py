"""Images whose size is far from the one that a recipe is made for, and the options that fit them."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixtransfer.datasets.configure import type_name
from mixtransfer.datasets.folders import DatasetFolder
from mixtransfer.datasets.sources import displayed_size, image_files
from mixtransfer.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["size_note"]

#: Resizing by less than these is what recipes do to the images that they were published on.
LEAST, MOST = 0.4, 2.5
#: Entries of resizing steps, and of those that cut or pad.
RESIZED, CUT = ("scale", "scales"), ("crop_size", "size")
#: Images that are looked at, and the step of sizes that are proposed: the largest stride of a backbone.
LOOKED_AT, MULTIPLE = 16, 32


def size_note(cfg: Config, folder: DatasetFolder) -> str | None:
    """Return what to say where a recipe makes a dataset's images much larger or smaller; None where it does not.

    Args:
        cfg: a config that reads the dataset.
        folder: the dataset, of a segmentor or detector; classifiers take crops of any size.
    """
    scale = next((value for key, value in _sizes(cfg, "train_dataloader") if key.split(".")[-1] in RESIZED), None)
    if folder.kind == "cls" or scale is None:
        return None
    files = image_files(folder.root / folder.train.images)
    sizes = []
    for file in files[:: max(1, len(files) // LOOKED_AT)][:LOOKED_AT]:
        # Those that cannot be read are named where they are loaded.
        with contextlib.suppress(UserError):
            sizes.append(displayed_size(file))
    if not sizes:
        return None
    height, width = (round(statistics.median(side)) for side in zip(*sizes, strict=True))
    pairs = scale if isinstance(scale[0], Sequence) else [scale]
    factors = [min(max(pair) / max(width, height), min(pair) / min(width, height)) for pair in pairs]
    factor = statistics.median(factors)
    if LEAST <= factor <= MOST:
        return None
    seen = f"{round(width * factor)}x{round(height * factor)}"
    options = " ".join(
        f"'{key}={_scaled(value, factor)}'"
        for key, value in _all_sizes(cfg)
        # Crops of shrunken images stay: larger ones would take more memory.
        if factor > MOST or key.split(".")[-1] in RESIZED
    )
    said = "enlarges" if factor > MOST else "shrinks"
    return (
        f"images are {width}x{height}, and the recipe {said} them to {seen}; to take them about as they are:"
        f" --cfg-options {options}"
    )


def _all_sizes(cfg: Config) -> Iterator[tuple[str, Any]]:
    for split in ("train", "val", "test"):
        yield from _sizes(cfg, f"{split}_dataloader")
    size = (cfg.model.get("data_preprocessor") or {}).get("size")
    if size:
        yield "model.data_preprocessor.size", size


def _sizes(cfg: Config, loader: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of every size in the pipelines of a loader, in their order."""
    todo: list[tuple[str, Any]] = [(loader, cfg.get(loader))]
    while todo:
        path, value = todo.pop(0)
        if isinstance(value, Mapping):
            step = type_name(value) if ".pipeline." in path else ""
            for key, inner in value.items():
                if key in RESIZED + CUT and ("Resize" in step or "Crop" in step) and _is_size(inner):
                    yield f"{path}.{key}", inner
                elif isinstance(inner, Mapping | list | tuple):
                    todo.append((f"{path}.{key}", inner))
        elif isinstance(value, list | tuple):
            todo = [(f"{path}.{number}", inner) for number, inner in enumerate(value)] + todo


def _is_size(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(side, int) for side in value) or all(map(_is_size, value))


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, list | tuple):
        inner = [_scaled(side, factor) for side in value]
        return inner if isinstance(value[0], Sequence) else tuple(inner)
    return max(MULTIPLE, MULTIPLE * round(value / factor / MULTIPLE))
