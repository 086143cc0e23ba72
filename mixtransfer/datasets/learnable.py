"""Checks for data that cannot be learned, before training: one class, masks that count from 0, heads of another size.

Everything here needs the config and some masks, and neither a model nor decoded images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mixtransfer.datasets.configure import class_info, leaf_datasets, type_name
from mixtransfer.datasets.folders import image_files
from mixtransfer.datasets.stored import (
    LAST_UNUSED,
    SHIFTED,
    Unusable,
    count_labels,
    label_problem,
    read_mask,
    require_labels,
)
from mixtransfer.errors import UserError
from mixtransfer.progress import notice, progress_line

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch.utils.data import DataLoader

__all__ = ["FIRST_STEPS", "ZeroLosses", "build_dataset", "require_learnable", "require_steps"]

#: Masks that are read before every training; all are if these leave something open.
SAMPLE = 64
#: A loss that is exactly zero in so many first steps trains nothing.
FIRST_STEPS = 50


def require_learnable(cfg: Config) -> None:
    """Refuse a training that would run and learn nothing.

    Raises:
        UserError: one class where a softmax tells classes apart, a head that does not fit the number of classes, or
            masks that hold no two classes.
    """
    _require_heads(cfg)
    if not cfg.model.get("decode_head"):
        return
    training, validation = _mask_folders(cfg, "train"), _mask_folders(cfg, "val")
    for folder in training:
        _require_labels(folder, [other for other in validation if other.names == folder.names])


class _Masks(NamedTuple):
    root: Path
    files: list[Path]
    names: tuple[str, ...]
    void: tuple[int, ...]


def _mask_folders(cfg: Config, split: str) -> list[_Masks]:
    """The masks of a split, with the names of their labels; of datasets that are no folders, none."""
    found, scope = [], cfg.get("default_scope")
    for dataset in leaf_datasets((cfg.get(f"{split}_dataloader") or {}).get("dataset") or {}):
        prefix = dataset.get("data_prefix")
        folder = prefix.get("seg_map_path") if isinstance(prefix, Mapping) else None
        root = Path(dataset.get("data_root") or "") / (folder or "")
        if not folder or dataset.get("ann_file") or not root.is_dir():
            continue
        suffix = dataset.get("seg_map_suffix", ".png")
        files = [path for path in image_files(root) if path.name.endswith(suffix)]
        reduced = dataset.get("reduce_zero_label", type_name(dataset) == "ADE20KDataset")
        names = tuple(dataset.get("stored_classes") or class_info(dataset, scope).get("classes") or ())
        if files and names:
            found.append(_Masks(root, files, names, (0, 255) if reduced else (255,)))
    return found


def _require_heads(cfg: Config) -> None:
    model = cfg.model
    for key in ("decode_head", "auxiliary_head"):
        part = model.get(key)
        for head in [part] if isinstance(part, Mapping) else part or []:
            count, channels = head.get("num_classes"), head.get("out_channels")
            if count == 1:
                raise UserError(
                    f"model.{key}.num_classes=1: one class leaves nothing to tell apart, its loss is 0; label the"
                    " background as a class too (labels 1 and 2; 0 is void)"
                )
            if "loss_decode" not in head or channels in (None, count):
                continue
            losses = head.loss_decode if isinstance(head.loss_decode, list) else [head.loss_decode]
            if channels != 1:
                raise UserError(f"model.{key}.out_channels={channels}: the data has {count} classes; leave it out")
            if count != 2:
                raise UserError(
                    f"model.{key}.out_channels=1: one channel tells two classes apart, the data has {count}; leave"
                    " out_channels out, or give data of two classes"
                )
            if not any(loss.get("use_sigmoid") for loss in losses if "CrossEntropy" in str(loss.get("type"))) and any(
                "CrossEntropy" in str(loss.get("type")) for loss in losses
            ):
                raise UserError(
                    f"model.{key}.out_channels=1: a softmax over one channel has a loss of 0; set"
                    f" model.{key}.loss_decode.use_sigmoid=True, or leave out_channels out"
                )
    if cfg.get("default_scope") == "mmpretrain":
        head = model.get("head") or {}
        count = model.get("num_classes", head.get("num_classes") if isinstance(head, Mapping) else None)
        if count == 1:
            raise UserError("the data has one class, which leaves nothing to tell apart; add folders of other classes")


def _require_labels(training: _Masks, validation: list[_Masks]) -> None:
    """Read some of the masks, and all if these leave something open; those of validation only if a class is missing."""
    names, void, files = training.names, training.void, training.files
    step = max(1, len(files) // SAMPLE)
    order = [*files[::step], *(path for i, path in enumerate(files) if i % step)]
    more = [path for other in validation for path in other.files]
    progress, counts = progress_line("looking at masks"), np.zeros(256, np.int64)
    for done, path in enumerate([*order, *more], 1):
        try:
            found = count_labels(read_mask(path))
            require_labels(found, len(names), void)
        except Unusable as error:
            raise UserError(f"{path}: {error}; see mixtransfer data check") from error
        counts += found
        progress(done, len(order) + len(more))
        if done < min(SAMPLE, len(order)):
            continue
        problem = label_problem(counts, names, void)
        if problem is None:
            return
        # Validation may have the last class.
        if done < len(order) + len(more) * (problem[0] in (SHIFTED, LAST_UNUSED)):
            continue
        said = f"{training.root}: {problem[0]}: {problem[1]}"
        if problem[0] != LAST_UNUSED:
            raise UserError(said)
        notice(said)


def build_dataset(settings: Mapping) -> Any:
    """Build the dataset of a loader's settings, and read its list of samples.

    Raises:
        UserError: no sample is left, by ``filter_cfg``, ``indices`` or for want of files.
    """
    from mmengine.registry import DATASETS

    try:
        dataset = DATASETS.build(settings)
        if hasattr(dataset, "full_init"):
            dataset.full_init()
        count = len(dataset)
    except (ValueError, ZeroDivisionError) as error:
        # How mmengine stores an empty list, and repeats one.
        if "need at least one array to concatenate" not in str(error) and not isinstance(error, ZeroDivisionError):
            raise
        count = 0
    if not count:
        first = next(leaf_datasets(settings))
        place = Path(first.get("data_root") or "") / str(first.get("ann_file") or "")
        chosen = [key for key in ("filter_cfg", "indices") if first.get(key) is not None]
        remedy = f"change its {' and '.join(chosen)}" if chosen else "see mixtransfer data check"
        raise UserError(f"{place}: no image is left after filtering; {remedy}")
    return dataset


def require_steps(loader: DataLoader) -> None:
    """Refuse a loader whose epochs have no batch.

    Raises:
        UserError: ``drop_last`` drops everything.
    """
    # An endless sampler fills every batch.
    if len(loader) == 0 and hasattr(loader.sampler, "epoch"):
        raise UserError(
            f"train_dataloader: {len(loader.sampler)} images do not fill a batch, and drop_last drops them, so that an"
            " epoch has no step; give a smaller batch_size, or drop_last=False"
        )


class ZeroLosses:
    """Watches the first losses of a training: the sum must not stay exactly 0, a single term is said.

    :class:`~mixtransfer.engine.hooks.LossGuardHook` shows it every step.
    """

    def __init__(self):
        self.steps, self.zero = 0, None

    def look(self, losses: Mapping[str, float]) -> None:
        """Look at what one step logs; after ``FIRST_STEPS`` calls there is nothing left to do.

        Raises:
            UserError: the loss was 0 in all of the first steps.
        """
        if self.steps >= FIRST_STEPS:
            return
        self.steps += 1
        zero = {name for name, value in losses.items() if value == 0}
        self.zero = zero if self.zero is None else self.zero & zero
        if self.steps < FIRST_STEPS or not self.zero:
            return
        if "loss" in self.zero:
            raise UserError(
                f"the loss is exactly 0 in the first {FIRST_STEPS} steps: nothing is learned; see mixtransfer data"
                " check"
            )
        notice(f"{', '.join(sorted(self.zero))}: exactly 0 in the first {FIRST_STEPS} steps, so it trains nothing")
