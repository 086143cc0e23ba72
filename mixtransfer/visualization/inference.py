"""Predictions of a trained segmentor, detector or classifier on single images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn

from mixtransfer.checkpoints import read_checkpoint
from mixtransfer.checkpoints.load import load_strictly
from mixtransfer.checkpoints.read import find_weights
from mixtransfer.engine.guarded_loading import GuardedLoading
from mixtransfer.engine.sampling import UNREADABLE, last_line
from mixtransfer.errors import UserError
from mixtransfer.registry import import_quietly
from mixtransfer.visualization.pictures import overlay, save

__all__ = ["load_model", "predictions", "save_predictions"]


def load_model(cfg: Config, checkpoint: str | Path, trust: bool = False) -> nn.Module:
    """Build the model of a config, prepared for ``"predict"``, with the weights of a checkpoint, for evaluation."""
    import_quietly(f"{cfg.default_scope}.datasets")
    init_default_scope(cfg.default_scope)
    # A classifier's config has it beside the model, as mmengine's runner takes it.
    preprocessor = {"data_preprocessor": cfg.data_preprocessor} if "data_preprocessor" in cfg else {}
    with GuardedLoading(trust):
        model = MODELS.build({**preprocessor, **cfg.model})
    load_strictly(model, find_weights(read_checkpoint(checkpoint, trust), str(checkpoint)), str(checkpoint))
    return model.eval()


def predictions(cfg: Config, model: nn.Module, files: Sequence[Path]) -> Iterator[tuple[Path, BaseDataElement]]:
    """Yield every image's file and data sample, with the test pipeline that the config has."""
    steps = cfg.test_dataloader.dataset.pipeline
    pipeline = Compose([step for step in steps if not step["type"].startswith("Load") or "Image" in step["type"]])
    for number, file in enumerate(files):
        try:
            image = pipeline(dict(img_path=str(file), img_id=number))
        except UNREADABLE as error:
            raise UserError(f"{file}: cannot be loaded ({last_line(error)})") from error
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([image]))
        yield file, sample


def save_predictions(
    cfg: Config, checkpoint: str | Path, files: Sequence[Path], folder: Path, trust: bool = False
) -> Iterator[Path]:
    """Write ``NAME.png`` for every image into ``folder``, and yield the paths.

    A segmentor also writes ``NAME_labels.png``, its label map as the dataset has it: class k is value k + 1.
    """
    info = cfg.test_dataloader.dataset.get("metainfo", {})
    model = load_model(cfg, checkpoint, trust)
    for file, sample in predictions(cfg, model, files):
        image = np.asarray(Image.open(file).convert("RGB"))
        path = folder / f"{file.stem}.png"
        if "pred_sem_seg" in sample:
            labels = sample.pred_sem_seg.data[0].numpy()
            save((labels + 1).astype(np.uint8), folder / f"{file.stem}_labels.png")
            yield save(overlay(image, labels, info.palette), path)
        elif "pred_instances" in sample:
            from mmdet.visualization import DetLocalVisualizer

            visualizer = DetLocalVisualizer()
            visualizer.dataset_meta = dict(info)
            visualizer.add_datasample(file.stem, image, sample, draw_gt=False, out_file=str(path))
            yield path
        elif "pred_label" in sample:
            from mmpretrain.visualization import UniversalVisualizer

            UniversalVisualizer().visualize_cls(image, sample, info.classes, draw_gt=False, out_file=str(path))
            yield path
        else:
            raise UserError(f"{type(model).__name__} gives no label map, instances or class; there is nothing to draw")
