"""A frozen backbone's maps of a dataset, computed once and kept as float16 files that are mapped into memory."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mixtransfer.checkpoints.load import load_checkpoint
from mixtransfer.datasets.configure import leaf_datasets
from mixtransfer.datasets.learnable import build_dataset
from mixtransfer.engine.sampling import SeededDataset
from mixtransfer.errors import UserError
from mixtransfer.evaluation.identity import Fingerprints, content_hash, digest, resolved
from mixtransfer.progress import progress_line
from mixtransfer.registry import import_quietly

__all__ = ["RANDOM", "Maps", "frozen_backbone", "kept_maps"]

#: The word for a backbone with random weights where a checkpoint is asked for: the floor of a probe.
RANDOM = "random"
INDEX, LABELS = "index.json", "labels.u8"


def frozen_backbone(cfg: Config, checkpoint: str, trust: bool = False, seed: int = 0) -> nn.Module:
    """Build the backbone of a segmentor's config with the weights of a file, or random ones of a seed."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(seed)
    backbone = MODELS.build({**cfg.model.backbone, "init_cfg": None, "token_classifier": None})
    backbone.init_weights()
    if checkpoint != RANDOM:
        load_checkpoint(backbone, checkpoint, trust=trust)
    return backbone.eval().requires_grad_(False)


class Maps:
    """The maps and labels of a split.

    Args:
        folder: with the files that :func:`kept_maps` writes.
    """

    def __init__(self, folder: Path):
        self.index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.names: list[str] = self.index["names"]
        self.channels: list[int] = self.index["channels"]
        self._maps = [np.memmap(folder / f"map{k}.f16", np.float16, "r") for k in range(len(self.channels))]
        self._labels = np.memmap(folder / LABELS, np.uint8, "r")
        pairs = zip(self.channels, self.index["shapes"], strict=True)
        self._starts = [np.cumsum([0, *(channels * h * w for h, w in shapes)]) for channels, shapes in pairs]
        self._label_starts = np.cumsum([0, *(h * w for h, w in self.index["label_shapes"])])

    def __len__(self) -> int:
        return len(self.names)

    def labels(self, place: int) -> np.ndarray:
        """Return an image's labels (H, W) uint8, 255 for void."""
        start, end = self._label_starts[place : place + 2]
        return np.asarray(self._labels[start:end]).reshape(self.index["label_shapes"][place])

    def batch(self, places: Sequence[int], device: str = "cpu") -> tuple[list[Tensor], Tensor]:
        """Return the maps (B, C, h, w) float32 of images, the finest first, and labels (B, h, w) int64 of its size.

        Raises:
            UserError: the images have maps of different sizes.
        """
        found = []
        for k, channels in enumerate(self.channels):
            shapes = {tuple(self.index["shapes"][k][place]) for place in places}
            if len(shapes) > 1:
                sizes = ", ".join(map(str, sorted(shapes)))
                raise UserError(f"--batch {len(places)}: images have maps of different sizes ({sizes}); give --batch 1")
            h, w = shapes.pop()
            rows = [self._maps[k][self._starts[k][place] : self._starts[k][place + 1]] for place in places]
            stacked = np.stack([np.asarray(row).reshape(channels, h, w) for row in rows])
            found.append(torch.from_numpy(stacked).to(device, torch.float32))
        size = found[0].shape[-2:]
        labels = torch.stack([torch.from_numpy(_reduced(self.labels(place), size)) for place in places])
        return found, labels.to(device, torch.int64)


def _reduced(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the labels nearest to the centers of the cells of a coarser map."""
    pairs = zip(size, labels.shape, strict=True)
    rows, columns = (((np.arange(count) + 0.5) * length / count).astype(int) for count, length in pairs)
    return np.ascontiguousarray(labels[np.ix_(rows, columns)])


def kept_maps(cfg: Config, backbone: nn.Module, split: str, cache: Path, device: str = "cpu") -> Maps:
    """Return the maps of the training or test split, computed unless they are kept for these weights and this data.

    Images are loaded as the test pipeline does, those of training too. Processes that want the same maps wait for the
    one that computes them.

    Args:
        cfg: a segmentor's, prepared for the test.
        backbone: from :func:`frozen_backbone`.
        split: "train" or "test".
        cache: where maps are kept.
        device: where they are computed.
    """
    test: Any = next(leaf_datasets(cfg.test_dataloader.dataset))
    settings = copy.deepcopy(test)
    if split == "train":
        settings = {**copy.deepcopy(next(leaf_datasets(cfg.train_dataloader.dataset))), "pipeline": test.pipeline}
    of = {
        "weights": digest(backbone.state_dict()),
        "config": resolved(Config(dict(model=dict(cfg.model.backbone), data_preprocessor=cfg.model.data_preprocessor))),
        "pipeline": [dict(step) for step in test.pipeline],
        "indices": settings.get("indices"),
        "data": Fingerprints(cache / "fingerprints.json").of(cfg, split),
    }
    folder = cache / f"{split}-{content_hash(json.loads(json.dumps(of, default=str)))[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _compute(cfg, backbone, settings, partial, device)
            os.replace(partial, folder)
    return Maps(folder)


def _compute(cfg: Config, backbone: nn.Module, settings: Any, folder: Path, device: str) -> None:
    import_quietly(f"{cfg.default_scope}.datasets")
    dataset = SeededDataset(build_dataset(settings), 0)
    preprocessor = MODELS.build(cfg.model.data_preprocessor).to(device)
    backbone = backbone.to(device)
    index: dict[str, Any] = {"names": [], "channels": list(backbone.out_channels), "label_shapes": []}
    index["shapes"] = [[] for _ in index["channels"]]
    progress = progress_line(f"maps of {len(dataset)} images")
    files = [open(folder / f"map{k}.f16", "wb") for k in range(len(index["channels"]))]
    with torch.no_grad(), open(folder / LABELS, "wb") as labels:
        for number in range(len(dataset)):
            batch = preprocessor(pseudo_collate([dataset[number]]), training=False)
            sample = batch["data_samples"][0]
            found = [x[0].to("cpu", torch.float16) for x in backbone(batch["inputs"])]
            if not all(torch.isfinite(x).all() for x in found):
                raise UserError(f"{sample.img_path}: a map has values beyond float16; the probe needs normed maps")
            for file, shapes, x in zip(files, index["shapes"], found, strict=True):
                shapes.append(list(x.shape[-2:]))
                file.write(x.contiguous().numpy().tobytes())
            truth = sample.gt_sem_seg.data[0].cpu().numpy().astype(np.uint8)
            index["label_shapes"].append(list(truth.shape))
            labels.write(truth.tobytes())
            index["names"].append(Path(sample.img_path).name)
            progress(number + 1, len(dataset))
    for file in files:
        file.close()
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
