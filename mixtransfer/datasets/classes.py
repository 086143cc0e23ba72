"""Classes of the data are matched by name with those that a checkpoint was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mixtransfer.datasets.configure import class_info, leaf_datasets
from mixtransfer.errors import UserError

__all__ = ["data_info", "in_order", "match_classes", "trained_classes"]

#: A WordNet id, as folders of ImageNet are named.
WORDNET = re.compile(r"n\d{8}")


def trained_classes(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the classes that a checkpoint of training names, in the order of its outputs; None where it names none.

    Args:
        content: from :func:`~mixtransfer.checkpoints.read.read_checkpoint`; mmengine keeps them as
            ``meta["dataset_meta"]["classes"]``, mmcv kept them as ``meta["CLASSES"]``.
    """
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        return None
    kept = meta.get("dataset_meta")
    names = (kept.get("classes") if isinstance(kept, Mapping) else None) or meta.get("CLASSES")
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def match_classes(cfg: Config, trained: Sequence[str] | None, name: str) -> None:
    """Put the classes of a config's datasets into the order of a checkpoint's outputs, in place.

    Where the checkpoint names no classes, the data's order is all there is.

    Args:
        cfg: the config, on its data.
        trained: from :func:`trained_classes`.
        name: how the checkpoint is named in messages.

    Raises:
        UserError: the data has other classes than the checkpoint; both lists are named.
    """
    if trained is None:
        return
    for split in ("train", "val", "test"):
        for dataset in leaf_datasets((cfg.get(f"{split}_dataloader") or {}).get("dataset") or {}):
            info = class_info(dataset, cfg.get("default_scope"))
            classes = tuple(info.get("classes") or ())
            if not classes or classes == tuple(trained):
                continue
            if in_order(classes, trained, name) == classes:
                continue
            metainfo = {**(dataset.get("metainfo") or {}), "classes": tuple(trained)}
            palette = info.get("palette")
            if isinstance(palette, (list, tuple)) and len(palette) == len(classes):
                metainfo["palette"] = [tuple(palette[classes.index(name)]) for name in trained]
            dataset["metainfo"] = metainfo


def in_order(classes: Sequence[str], trained: Sequence[str] | None, name: str) -> tuple[str, ...]:
    """Return the data's classes in the order of the checkpoint ``name``.

    ImageNet's folders are WordNet ids, and checkpoints name its classes in English: these lists are in one order.

    Raises:
        UserError: the data has other classes; both lists are named.
    """
    if trained is None:
        return tuple(classes)
    ids = [all(WORDNET.fullmatch(name) for name in names) for names in (classes, trained)]
    if ids[0] != ids[1] and len(classes) == len(trained):
        return tuple(classes)
    if set(classes) != set(trained) or len(classes) != len(trained):
        raise UserError(
            f"{name} was trained on {len(trained)} classes ({_listed(trained, classes)}), the data has"
            f" {len(classes)} ({_listed(classes, trained)}); give data with the same names by --data"
        )
    return tuple(trained)


def data_info(cfg: Config, split: str = "test") -> dict:
    """Return names and colors of the classes of a config's dataset, in the data's order."""
    dataset = next(leaf_datasets(cfg[f"{split}_dataloader"]["dataset"]))
    return class_info(dataset, cfg.get("default_scope"))


def _listed(names: Sequence[str], others: Sequence[str]) -> str:
    """All names, or of many those that the other list lacks first."""
    ordered = [name for name in names if name not in others] + [name for name in names if name in others]
    return ", ".join(names) if len(names) <= 20 else ", ".join(ordered[:20]) + ", …"
