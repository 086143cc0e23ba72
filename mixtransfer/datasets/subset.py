"""A fraction of a dataset's training images in which every class has its share.

Iterative stratification: K. Sechidis, G. Tsoumakas and I. Vlahavas, On the Stratification of Multi-Label Data (ECML
PKDD 2011), Algorithm 1, for the two subsets "chosen" and "rest"; the number of chosen images is met exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.registry import init_default_scope

from mixtransfer.datasets.configure import leaf_datasets
from mixtransfer.datasets.learnable import build_dataset
from mixtransfer.datasets.stored import Unusable, read_mask
from mixtransfer.errors import UserError
from mixtransfer.progress import progress_line
from mixtransfer.registry import import_quietly

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["choose", "take_fraction"]


def take_fraction(cfg: Config, *copies: Config, fraction: Fraction, seed: int) -> None:
    """Let a config train on a fraction of its training images, in place: ``indices`` of its dataset.

    Args:
        cfg: prepared for training.
        copies: configs of the same training that are to say so too.
        fraction: above 0, up to 1.
        seed: of the choice; the order of training has its own.

    Raises:
        UserError: the training data are several datasets, or already a part of one.
    """
    leaves: list[Any] = list(leaf_datasets(cfg.train_dataloader.dataset))
    if len(leaves) != 1 or leaves[0].get("indices") is not None:
        what = "several datasets" if len(leaves) != 1 else "already a part of a dataset (its indices)"
        raise UserError(f"--fraction {fraction}: train_dataloader.dataset is {what}; use one whole dataset")
    import_quietly(f"{cfg.default_scope}.datasets")
    init_default_scope(cfg.default_scope)
    dataset = build_dataset({**leaves[0], "pipeline": []})
    progress, classes = progress_line("reading the classes of the images"), []
    for number in range(len(dataset)):
        classes.append(_classes_of(dataset.get_data_info(number)))
        progress(number + 1, len(dataset))
    indices = choose(classes, max(1, round(fraction * len(classes))), seed)
    for config in (cfg, *copies):
        next(leaf_datasets(config.train_dataloader.dataset))["indices"] = indices


def _classes_of(info: Mapping[str, Any]) -> Set[int]:
    if "instances" in info:
        return {instance["bbox_label"] for instance in info["instances"]}
    if "gt_label" in info:
        return {int(label) for label in np.atleast_1d(info["gt_label"])}
    try:
        labels = set(np.unique(read_mask(info["seg_map_path"])).tolist())
    except (Unusable, FileNotFoundError) as error:
        raise UserError(f"{info['seg_map_path']}: {error}; see tools/data.py check") from error
    return labels - {0, 255} if info.get("reduce_zero_label") else labels - {255}


def choose(classes: Sequence[Set[int]], count: int, seed: int) -> list[int]:
    """Return the indices of ``count`` images, rising, such that each class has about the same share of them as of all.

    Args:
        classes: the classes in each image.
        count: from 1 to the number of images.
        seed: of the draws where nothing else decides.
    """
    rng = np.random.default_rng(seed)
    share = count / len(classes)
    left = {k for k, found in enumerate(classes) if found}
    wanted = {label: share * n for label, n in _frequency(classes, left).items()}
    chosen: set[int] = set()
    while left and len(chosen) < count:
        remaining = _frequency(classes, left)
        rarest = min(remaining, key=lambda label: (remaining[label], label))
        holders = rng.permutation([k for k in sorted(left) if rarest in classes[k]])
        available = len(holders)
        for number, k in enumerate(holders.tolist()):
            left.discard(k)
            need, others = wanted[rarest], available - number
            # The subset that wants more of the class takes the image; of equals, the draw decides.
            takes = need > others - need or (need == others - need and rng.random() < 0.5)
            if takes and len(chosen) < count:
                chosen.add(k)
                for label in classes[k]:
                    wanted[label] -= 1
    rest = rng.permutation([k for k in range(len(classes)) if k not in chosen]).tolist()
    return sorted([*chosen, *rest[: count - len(chosen)]])


def _frequency(classes: Sequence[Set[int]], left: Set[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for k in left:
        for label in classes[k]:
            counts[label] = counts.get(label, 0) + 1
    return counts
