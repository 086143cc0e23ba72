"""Pictures of a model's answers, with the names of the classes that are in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mixtransfer.inference.model import Answer, Image, Model
from mixtransfer.inference.results import Detections, Segmentation
from mixtransfer.visualization.pictures import INK, as_picture, overlay, plain_text, save

__all__ = ["save_answer"]

DPI = 100
#: Classes in a legend, and pixels of the shortest side that a picture is enlarged to.
MOST, LEAST = 12, 480


def save_answer(model: Model, image: Image, answer: Answer, path: Path, least: float = 0.3) -> Path:
    """Draw an answer over its image and write it as PNG; return the path.

    Args:
        model: who answered.
        image: the file or the pixels.
        answer: from :meth:`~mixtransfer.inference.model.Model.predict`.
        path: where the picture goes.
        least: instances with a lower score are left out.
    """
    picture = as_picture(model.load(image))
    shown = answer.above(least) if isinstance(answer, Detections) else answer
    colors = dict(zip(model.classes, model.palette, strict=True)) if model.palette else {}
    legend: dict[str, tuple[float, ...]] = {}
    if isinstance(shown, Segmentation):
        picture = overlay(picture, shown.labels.astype(int), model.palette)
        legend = {
            f"{name} {100 * part:.0f}%": _unit(colors[name]) for name, part in list(shown.shares().items())[:MOST]
        }
    elif isinstance(shown, Detections):
        if shown.masks is not None:
            picture = _with_masks(picture, shown, [colors[name] for name in model.classes])
        seen = {name for name, _, _ in shown}
        legend = {name: _unit(colors[name]) for name in model.classes if name in seen}
    height, width = picture.shape[:2]
    factor = max(1.0, LEAST / min(height, width))
    lines = -(-len(legend) // 4)
    foot = 24 * lines + (8 if lines else 0)
    size = factor * width / DPI, (factor * height + foot) / DPI
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, foot / (size[1] * DPI), 1, 1 - foot / (size[1] * DPI)))
    axes.set_axis_off()
    axes.imshow(picture, interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
    box = dict(facecolor="white", alpha=0.75, edgecolor="none", pad=1.5)
    if isinstance(shown, Detections):
        for name, score, (left, top, right, bottom) in shown:
            color = _unit(colors[name])
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=2))
            text = f"{plain_text(name)} {score:.2f}"
            axes.text(left, top, text, fontsize=9, color=INK, va="top", bbox=box, clip_on=True)
    elif not isinstance(shown, Segmentation):
        text = "\n".join(f"{plain_text(name)} {score:.3f}" for name, score in shown.top(min(5, len(shown.classes))))
        axes.text(4 / factor, 4 / factor, text, fontsize=11, color=INK, va="top", bbox=box)
    if legend:
        # matplotlib leaves out labels that begin with an underscore.
        patches = [Patch(facecolor=color, label=f" {plain_text(name)}") for name, color in legend.items()]
        figure.legend(handles=patches, loc="lower left", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    canvas.draw()
    return save(np.asarray(canvas.buffer_rgba())[..., :3].copy(), path)


def _unit(color: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(x / 255 for x in color)


def _with_masks(picture: np.ndarray, shown: Detections, colors: list[tuple[int, ...]]) -> np.ndarray:
    result = picture.astype(float)
    assert shown.masks is not None
    for mask, label in zip(shown.masks[::-1], shown.labels[::-1], strict=True):
        result[mask] = 0.5 * result[mask] + 0.5 * np.array(colors[label])
    return result.round().astype(np.uint8)
