"""Charts as SVG text: sharp at every size, read by screen readers, and the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from mixtransfer.visualization.pictures import FAINT, INK

__all__ = ["COLORS", "curves", "points"]

#: Colors that those who do not tell red from green can tell apart (Okabe and Ito, 2008).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
#: Size of a chart and its margins, left, right, above and below, in its own units.
WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, ABOVE, BELOW = 46, 14, 26, 40

#: Lines of fewer points show them.
FEW = 12

Point = tuple[float, float]


def curves(title: str, xlabel: str, lines: Sequence[tuple[str, str, Sequence[Point], bool]]) -> str:
    """Draw lines.

    Args:
        title, xlabel: texts.
        lines: name, color, points, and whether the line is a single training's, which is drawn thin and not named.
    """
    every = [point for _, _, found, _ in lines for point in found]
    frame = _Frame(title, xlabel, every)
    parts = []
    for name, color, found, thin in lines:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in found)
        style = 'stroke-width="1" stroke-opacity=".35"' if thin else 'stroke-width="2"'
        label = f"<title>{escape(name)}</title>"
        parts.append(f'<polyline fill="none" stroke="{color}" {style} points="{path}">{label}</polyline>')
        if not thin and len(found) < FEW:
            parts += [f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="{color}"/>' for x, y in found]
    return frame.around(parts)


def points(title: str, xlabel: str, marks: Sequence[tuple[str, str, Point, float | None]]) -> str:
    """Draw points with bars.

    Args:
        title, xlabel: texts.
        marks: name, color, (x, y), and half the length of the bar; None for no bar.
    """
    ends = [(x, y + sign * (bar or 0)) for _, _, (x, y), bar in marks for sign in (-1, 1)]
    frame = _Frame(title, xlabel, ends)
    parts = []
    for name, color, (x, y), bar in marks:
        label = f"<title>{escape(name)}: {x:.4g}, {y:.2f}</title>"
        if bar:
            top, bottom = frame.y(y + bar), frame.y(y - bar)
            parts.append(
                f'<line x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="{color}"/>'
            )
        parts.append(f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4.5" fill="{color}">{label}</circle>')
    return frame.around(parts)


def legend(names: Mapping[str, str]) -> str:
    """Return names beside their colors."""
    items = (f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in names.items())
    return f'<ul class="legend">{"".join(items)}</ul>'


class _Frame:
    """Axes around points."""

    def __init__(self, title: str, xlabel: str, found: Sequence[Point]):
        self.title, self.xlabel = title, xlabel
        self.xs, self.ys = _ticks([x for x, _ in found]), _ticks([y for _, y in found])

    def x(self, value: float) -> float:
        return LEFT + (value - self.xs[0]) / (self.xs[-1] - self.xs[0]) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BELOW - (value - self.ys[0]) / (self.ys[-1] - self.ys[0]) * (HEIGHT - ABOVE - BELOW)

    def around(self, parts: Sequence[str]) -> str:
        text = f'font-size="11" fill="{INK}"'
        grid = [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}" stroke="{FAINT}"/>'
            f'<text x="{LEFT - 6}" y="{self.y(tick) + 4:.1f}" text-anchor="end" {text}>{tick:.6g}</text>'
            for tick in self.ys
        ]
        below = [
            f'<text x="{self.x(tick):.1f}" y="{HEIGHT - BELOW + 16}" text-anchor="middle" {text}>{tick:.6g}</text>'
            for tick in self.xs
        ]
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">'
            f'<text x="{LEFT}" y="15" font-size="12.5" font-weight="600" fill="{INK}">{escape(self.title)}</text>'
            f"{''.join(grid)}{''.join(below)}{''.join(parts)}"
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle" {text}>'
            f"{escape(self.xlabel)}</text></svg>"
        )


def _ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers around values: four to seven, at equal distances."""
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - max(abs(low), 1) / 20, high + max(abs(high), 1) / 20
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]
