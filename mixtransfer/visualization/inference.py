"""Predictions of a trained segmentor, detector or classifier on single images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from mixtransfer.checkpoints import read_checkpoint
from mixtransfer.checkpoints.load import load_strictly
from mixtransfer.checkpoints.read import find_weights
from mixtransfer.datasets.classes import data_info, match_classes, trained_classes
from mixtransfer.datasets.configure import type_name
from mixtransfer.datasets.folders import make_palette
from mixtransfer.engine.guarded_loading import GuardedLoading
from mixtransfer.engine.sampling import UNREADABLE, last_line
from mixtransfer.errors import UserError
from mixtransfer.registry import import_quietly
from mixtransfer.visualization.pictures import as_picture, overlay, picture_names, plain_text, save

__all__ = ["load_model", "predictions", "save_predictions"]


def load_model(cfg: Config, checkpoint: str | Path, trust: bool = False) -> nn.Module:
    """Build the model of a config, prepared for ``"predict"``, with the weights of a checkpoint, for evaluation."""
    return _load(cfg, read_checkpoint(checkpoint, trust), checkpoint, trust)


def _load(cfg: Config, content: Mapping, checkpoint: str | Path, trust: bool) -> nn.Module:
    import_quietly(f"{cfg.default_scope}.datasets")
    init_default_scope(cfg.default_scope)
    # A classifier's config has it beside the model, as mmengine's runner takes it.
    preprocessor = {"data_preprocessor": cfg.data_preprocessor} if "data_preprocessor" in cfg else {}
    with GuardedLoading(trust):
        model = MODELS.build({**preprocessor, **cfg.model})
    load_strictly(model, find_weights(content, str(checkpoint)), str(checkpoint))
    return model.eval()


def predictions(cfg: Config, model: nn.Module, files: Sequence[Path]) -> Iterator[tuple[Path, BaseDataElement]]:
    """Yield the file and the data sample of every image, read by the config's test pipeline.

    Raises:
        UserError: an image cannot be loaded.
    """
    pipeline = _image_pipeline(cfg)
    for number, file in enumerate(files):
        yield file, _predict(pipeline, model, file, number)[1]


def _image_pipeline(cfg: Config) -> list:
    """The steps of the test pipeline without those that load annotations."""
    steps = cfg.test_dataloader.dataset.pipeline
    names = [type_name(step) for step in steps]
    return Compose(
        [s for s, name in zip(steps, names, strict=True) if not name.startswith("Load") or "Image" in name]
    ).transforms


def _predict(pipeline: list, model: nn.Module, file: Path, number: int) -> tuple[np.ndarray, BaseDataElement]:
    """Return the image as the network's pipeline loaded it, RGB (H, W, 3) uint8, and the model's prediction."""
    results, picture = dict(img_path=str(file), img_id=number), None
    try:
        for step in pipeline:
            results = step(results)
            picture = as_picture(results["img"]) if picture is None else picture
    except UNREADABLE as error:
        raise UserError(f"{file}: cannot be loaded ({last_line(error)})") from error
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([results]))
    return picture, sample


def save_predictions(
    cfg: Config, checkpoint: str | Path, files: Sequence[Path], folder: Path, trust: bool = False
) -> Iterator[Path | UserError]:
    """Write ``NAME.png`` for every image into ``folder``; yield its path, or the reason why an image has none.

    Names keep the folders that the files do not share. A segmentor also writes ``NAME_labels.png``, its label map as
    the dataset has it: class k is value k + 1, whatever order of classes the checkpoint was trained in.

    Raises:
        UserError: checkpoint and data have different classes, or a picture would overwrite one of the images.
    """
    files = list({os.path.abspath(file): file for file in files}.values())
    names = picture_names(files)
    inputs = {os.path.realpath(file) for file in files}
    for name in names.values():
        for end in (".png", "_labels.png"):
            if os.path.realpath(folder / f"{name}{end}") in inputs:
                raise UserError(f"{folder / f'{name}{end}'}: is one of the images; give another --work-dir")
    content = read_checkpoint(checkpoint, trust)
    stored = tuple(data_info(cfg).get("classes") or ())
    match_classes(cfg, trained_classes(content), str(checkpoint))
    info = data_info(cfg)
    values = np.array([stored.index(name) + 1 for name in info.get("classes") or ()], np.uint8)
    model = _load(cfg, content, checkpoint, trust)
    pipeline = _image_pipeline(cfg)
    for number, file in enumerate(files):
        try:
            image, sample = _predict(pipeline, model, file, number)
        except UserError as error:
            yield error
        else:
            yield _draw(image, sample, info, values, folder / f"{names[file]}.png", type(model).__name__)


def _draw(
    image: np.ndarray, sample: BaseDataElement, info: Mapping, values: np.ndarray, path: Path, model: str
) -> Path:
    """Draw one prediction; ``values`` are the labels, in the dataset's masks, of the model's classes."""
    names = [plain_text(name) for name in info.get("classes") or ()]
    if "pred_sem_seg" in sample:
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        save(
            values[labels] if len(values) else (labels + 1).astype(np.uint8), path.with_name(f"{path.stem}_labels.png")
        )
        return save(overlay(image, labels, info.get("palette") or make_palette(int(labels.max()) + 1)), path)
    if "pred_instances" in sample:
        from mmdet.visualization import DetLocalVisualizer

        visualizer = DetLocalVisualizer()
        visualizer.dataset_meta = {**info, "classes": names}
        visualizer.add_datasample(path.stem, image, sample, draw_gt=False, out_file=str(path))
        return path
    if "pred_label" in sample:
        from mmpretrain.visualization import UniversalVisualizer

        UniversalVisualizer().visualize_cls(image, sample, names, draw_gt=False, out_file=str(path))
        return path
    raise UserError(f"{model} gives no label map, instances or class; there is nothing to draw")
