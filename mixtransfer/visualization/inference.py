"""Predictions of a config's model on single images, as pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mixtransfer.checkpoints import read_checkpoint
from mixtransfer.datasets.classes import match_classes, trained_classes
from mixtransfer.errors import UserError
from mixtransfer.inference.model import Model
from mixtransfer.inference.results import Segmentation
from mixtransfer.inference.write import output_names
from mixtransfer.visualization.answers import save_answer
from mixtransfer.visualization.pictures import save

__all__ = ["save_predictions"]


def save_predictions(
    cfg: Config, checkpoint: str | Path, files: Sequence[Path], folder: Path, trust: bool = False
) -> Iterator[Path | UserError]:
    """Write ``NAME.png`` for every image into ``folder``, and yield the paths, or why there is none for an image.

    Names keep the folders that the files do not share. A segmentor also writes ``NAME_labels.png``, its label map as
    the dataset has it, whatever order of classes the checkpoint was trained in.

    Raises:
        UserError: checkpoint and data have different classes, or a picture would overwrite one of the images.
    """
    files = list({os.path.abspath(file): file for file in files}.values())
    names = output_names(files)
    inputs = {os.path.realpath(file) for file in files}
    for name in names.values():
        for end in (".png", "_labels.png"):
            if os.path.realpath(folder / f"{name}{end}") in inputs:
                raise UserError(f"{folder / f'{name}{end}'}: is one of the images; give another --work-dir")
    content = read_checkpoint(checkpoint, trust)
    match_classes(cfg, trained_classes(content), str(checkpoint))
    model = Model(cfg, content, str(checkpoint), trust=trust)
    for file, answer in model.each(files):
        if isinstance(answer, UserError):
            yield answer
            continue
        path = folder / f"{names[file]}.png"
        if isinstance(answer, Segmentation):
            labels = model.values[answer.labels] if len(model.values) else answer.labels + 1
            save(labels.astype(np.uint8), path.with_name(f"{path.stem}_labels.png"))
        yield save_answer(model, file, answer, path)
