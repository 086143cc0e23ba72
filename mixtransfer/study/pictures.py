"""Test images with the predictions of a study's segmentors side by side, drawn where the checkpoints are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mixtransfer.datasets.folders import image_files, open_dataset
from mixtransfer.datasets.stored import read_mask
from mixtransfer.engine.work_dir import checkpoints
from mixtransfer.errors import UserError
from mixtransfer.study.cells import RECORD
from mixtransfer.study.plan import Cell, Study

__all__ = ["PICTURES", "draw_predictions"]

#: The file of the pictures, beside the records.
PICTURES = "predictions.png"
#: Images that are shown, and the longest side of each in pixels.
SHOWN, SIDE = 4, 240


def draw_predictions(study: Study, out: Path) -> None:
    """Draw the predictions of each row's first seed for some images of the first task, unless they are there.

    Where no checkpoint is, as in a checkout of somebody else's study, the picture that is there stays.
    """
    cells = [cell for cell in study.cells if cell.kind == "train" and cell.seed == study.seeds[0]]
    cells = [cell for cell in cells if cell.factors["task"] == cells[0].factors["task"]]
    trained = [(cell, path) for cell in cells if (path := _newest(study, cell)) is not None]
    picture = out / PICTURES
    if not trained or not trained[0][0].data:
        return
    if picture.is_file() and all(path.stat().st_mtime < picture.stat().st_mtime for _, path in trained):
        return

    from mixtransfer.inference.model import load_model
    from mixtransfer.visualization.pictures import color_labels, save_sheet

    models = {}
    for cell, path in trained:
        try:
            models[cell.name] = load_model(path)
        except UserError as error:
            print(f"no pictures of predictions: {error}", file=sys.stderr)
            return
    first = next(iter(models.values()))
    if first.task != "seg":
        return
    data = open_dataset(str(trained[0][0].data), "seg")
    files = image_files(data.root / data.val.images)
    files = files[:: max(len(files) // SHOWN, 1)][:SHOWN]
    place = {int(value): k for k, value in enumerate(first.values)}
    rows = []
    for file in files:
        mask = data.root / data.val.annotations / file.relative_to(data.root / data.val.images)
        truth = read_mask(mask.with_suffix(data.val.mask_suffix))
        table = np.full(256, -1)
        table[list(place)] = list(place.values())
        drawn = [np.asarray(Image.open(file).convert("RGB")), color_labels(table[truth], first.palette)]
        drawn += [color_labels(model.predict(file).labels, model.palette) for model in models.values()]
        rows.append([_small(part) for part in drawn])
    titles = ["image", "ground truth", *(_title(cell) for cell, _ in trained)]
    save_sheet(rows, titles, picture, dict(zip(first.classes, first.palette, strict=True)))


def _newest(study: Study, cell: Cell) -> Path | None:
    done = sorted((study.work_dir / "cells").glob(f"{cell.name}-????????/{RECORD}"))
    return next(iter(checkpoints(done[-1].parent / "train")), None) if done else None


def _title(cell: Cell) -> str:
    return f"{cell.factors['hooks']}\n{cell.factors['fraction']} of labels".replace("_", " ")


def _small(picture: np.ndarray) -> np.ndarray:
    step = -(-max(picture.shape[:2]) // SIDE)
    return picture[::step, ::step]
