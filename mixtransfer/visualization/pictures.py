"""Pictures as arrays: label maps in color, token labels, sheets of pictures with titles, learning curves.

Pictures are RGB, (H, W, 3) uint8; labels are classes from 0, −1 where there is none.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.errors import visible

__all__ = [
    "as_picture",
    "color_labels",
    "color_shares",
    "enlarge",
    "heat",
    "outline",
    "overlay",
    "plain_text",
    "save",
    "save_curves",
    "save_sheet",
]

Palette = Sequence[Sequence[int]]
VOID_COLOR = (225, 225, 225)
#: The two images of a mix: the image's own tokens and the partner's.
OWN, PARTNER = (37, 99, 168), (240, 138, 36)
INK, FAINT = "#22303c", "#d9dee3"
LINES = ("#2563a8", "#f08a24", "#3c8d53", "#9b4f96")
#: What is no object, in a detector's sheet.
BACKGROUND_COLOR = (150, 160, 170)
#: Width of figures in inches: letters of 9 points have 8 pixels where one is shown 390 pixels wide.
WIDTH = 5.6
GAP, LINE, LEGEND_COLUMNS, SHEET_DPI = 0.06, 0.2, 4, 200
#: The remedy where a disk does not take a picture.
REMEDY = "choose another folder"
#: Letters of a title in a line.
SIGNS = 68


def as_picture(loaded: np.ndarray) -> np.ndarray:
    """Return an image as a pipeline loaded it, (H, W) or (H, W, C) in OpenCV's order, as a picture.

    Values of more than 8 bits keep their upper ones, as OpenCV does; floats are taken as 0 … 255.
    """
    image = loaded if loaded.ndim == 3 else loaded[..., None]
    if image.dtype == np.uint16:
        image = image >> 8
    image = np.clip(image, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image[..., 2::-1] if image.shape[2] > 2 else np.repeat(image[..., :1], 3, axis=2))


def color_labels(labels: np.ndarray, palette: Palette) -> np.ndarray:
    """Paint a map of classes (H, W) in the colors of its classes; light gray where there is none (below 0)."""
    colors = np.array([*palette, VOID_COLOR], np.uint8)
    return colors[np.where(labels < 0, len(palette), labels)]


def overlay(image: np.ndarray, labels: np.ndarray, palette: Palette, opacity: float = 0.6) -> np.ndarray:
    """Paint a map of classes over the image that it belongs to."""
    return (image * (1 - opacity) + color_labels(labels, palette) * opacity).round().astype(np.uint8)


def plain_text(name: str) -> str:
    """Return a class name as matplotlib draws it literally; between two dollars it would read formulas."""
    return visible(name).replace("$", r"\$")


def color_shares(shares: np.ndarray, colors: Palette) -> np.ndarray:
    """Paint the class shares of tokens (K, h, w): the mean of their colors, gray for missing mass."""
    missing = np.clip(1 - shares.sum(axis=0, keepdims=True), 0, 1)
    shares = np.concatenate([shares, missing])
    shares = shares / shares.sum(axis=0, keepdims=True)
    return np.einsum("khw,kc->hwc", shares, np.array([*colors, VOID_COLOR], float)).round().astype(np.uint8)


def heat(share: np.ndarray) -> np.ndarray:
    """Paint shares from 0 to 1 (h, w): from the color of the image's own tokens to that of the partner's."""
    share = np.clip(share, 0, 1)[..., None]
    return (np.array(OWN) * (1 - share) + np.array(PARTNER) * share).round().astype(np.uint8)


def enlarge(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a picture to ``size`` (H, W) without smoothing, so that its cells stay visible."""
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.NEAREST))


def outline(
    picture: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None, labels: np.ndarray, palette: Palette
) -> np.ndarray:
    """Draw boxes (n, 4) and the outlines of masks (n, H, W) on a picture, in the colors of their classes."""
    drawn = picture.copy()
    # A line is to be seen where the picture is one of several in a row.
    thick = max(1, round(max(picture.shape[:2]) / 100))
    for number, label in enumerate(labels):
        color = tuple(int(value) for value in palette[label])
        x0, y0, x1, y1 = (round(float(side)) for side in boxes[number])
        cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), color, thick)
        if masks is not None:
            found, _ = cv2.findContours(masks[number].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(drawn, found, -1, color, thick)
    return drawn


def save(picture: np.ndarray, path: Path) -> Path:
    """Write a picture as PNG and return its path."""
    with replace_whole(path, REMEDY) as partial:
        Image.fromarray(picture).save(partial, "png", optimize=True)
    return path


def save_sheet(
    rows: Sequence[Sequence[np.ndarray | str | None]],
    titles: Sequence[str],
    path: Path,
    classes: Mapping[str, Sequence] = {},
    *,
    title: str = "",
    heads: Sequence[str] = (),
    wrap: int = 3,
) -> Path:
    """Write pictures and texts in rows under column titles, with the colors of classes below; None leaves a gap.

    A sheet is so narrow that it can be read on a telephone: rows of more than ``wrap`` cells go on in the next line.

    Args:
        rows: the cells.
        titles: of the columns.
        path: the file.
        classes: names and colors of the legend.
        title: of the sheet.
        heads: a line above each row.
        wrap: cells a line.
    """
    columns = min(len(titles), wrap)
    wide = (WIDTH - GAP * (columns + 1)) / columns
    high = wide * max(x.shape[0] / x.shape[1] for row in rows for x in row if isinstance(x, np.ndarray))
    lines = [(r, start) for r in range(len(rows)) for start in range(0, len(titles), columns)]
    captioned = {line for line in lines if len(titles) > columns or line[0] == 0}
    top_lines = textwrap.wrap(plain_text(title), SIGNS)
    legend = LINE * math.ceil(len(classes) / LEGEND_COLUMNS) + GAP if classes else 0
    total = sum(high + GAP + (LINE if line in captioned else 0) for line in lines)
    total += sum(LINE for _ in rows if heads) + LINE * len(top_lines) + GAP + legend
    figure = _figure(WIDTH, total, dpi=SHEET_DPI)

    def write(text: str, left: float, below: float, **style: Any) -> None:
        figure.text(left / WIDTH, 1 - below / total, text, color=INK, va="top", **style)

    below = GAP
    for text in top_lines:
        write(text, GAP, below, fontsize=9.5, fontweight="bold")
        below += LINE
    for r, start in lines:
        if heads and start == 0:
            write(plain_text(heads[r]), GAP, below, fontsize=9.5)
            below += LINE
        for c, cell in enumerate(rows[r][start : start + columns]):
            left = GAP + c * (wide + GAP)
            if (r, start) in captioned:
                write(plain_text(titles[start + c]), left, below, fontsize=9)
            place = below + (LINE if (r, start) in captioned else 0)
            if isinstance(cell, str):
                write(plain_text(cell), left, place + 0.2 * high, fontsize=9, linespacing=1.5)
            elif cell is not None:
                axes = figure.add_axes((left / WIDTH, 1 - (place + high) / total, wide / WIDTH, high / total))
                axes.set_axis_off()
                axes.imshow(cell, interpolation="nearest")
        below += high + GAP + (LINE if (r, start) in captioned else 0)
    if classes:
        _add_legend(figure, classes)
    return _write(figure, path)


def save_curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], xlabel: str, path: Path
) -> Path:
    """Write line charts, one below the other: {y label: {name: (x values, y values)}}; panels share legends."""
    figure = _figure(WIDTH, 2.9 * len(panels))
    shown: list[str] = []
    for number, (label, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        for color, (name, (x, y)) in zip(LINES, lines.items(), strict=False):
            axes.plot(x, y, color=color, linewidth=2, label=name, marker="o" if len(x) < 25 else None, markersize=4)
            axes.annotate(f"{y[-1]:.3g}", (x[-1], y[-1]), (5, 0), textcoords="offset points", color=color, va="center")
        axes.set_title(label, fontsize=10.5, color=INK, loc="left")
        if number == len(panels):
            axes.set_xlabel(xlabel, color=INK)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.09)
        axes.tick_params(colors=INK, length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        if list(lines) != shown:
            shown = list(lines)
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    figure.tight_layout()
    return _write(figure, path)


def _figure(width: float, height: float, dpi: int = 144) -> Figure:
    # Without pyplot there is no global state and no display to ask for.
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _add_legend(figure: Figure, classes: Mapping[str, Sequence[int]]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=np.array(color) / 255, label=plain_text(name)) for name, color in classes.items()]
    style = dict(frameon=False, fontsize=9, labelcolor=INK, handlelength=1.2)
    figure.legend(handles=patches, loc="lower center", ncols=LEGEND_COLUMNS, **style)


def _write(figure: Figure, path: Path) -> Path:
    with replace_whole(path, REMEDY) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix("."))
    return path
