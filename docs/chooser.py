"""Tables of the page that chooses a network: published scores against the work that they take, nothing of it typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import recipe_pages

from mixtransfer.backbones import FAMILIES
from mixtransfer.study.charts import points

__all__ = ["CHARTS", "charts", "choices", "front", "tables"]


@dataclass(frozen=True)
class Job:
    """A table: its heading, the column of :class:`Reported` and its name, and what the sources have to say, or not."""

    title: str
    column: str
    score: str
    says: tuple[str, ...] = ()
    not_says: tuple[str, ...] = ()
    max_side: int | None = None


PLAIN = ("22k", "21k", "istill")
JOBS = (
    Job("Classification, ImageNet-1k alone, up to 256 pixels", "top1", "top-1", (), PLAIN, 256),
    Job("Segmentation, UPerNet, 160k iterations", "miou", "mIoU", ("UPerNet, 160k",), PLAIN),
    Job("Segmentation, Semantic FPN", "miou", "mIoU", ("Semantic FPN",), PLAIN),
    Job("Detection, Mask R-CNN, 12 epochs", "box_ap", "box AP", ("Mask R-CNN, 12 epochs",), PLAIN),
    Job("Detection, Mask R-CNN, 36 epochs", "box_ap", "box AP", ("COCO: Mask R-CNN, 36 epochs",), PLAIN),
    Job("Detection, Cascade Mask R-CNN, 36 epochs", "box_ap", "box AP", ("Cascade Mask R-CNN, 36 epochs",), PLAIN),
)
#: Charts, by the name of their file: the job that they show.
CHARTS = {"choose_top1.svg": JOBS[0], "choose_miou.svg": JOBS[1], "choose_ap.svg": JOBS[3]}
#: Marks of the place of the tables in the page.
BEGIN, END = "<!-- written by docs/make_zoo.py -->", "<!-- up to here -->"
FRONT, OTHER = "#0072b2", "#999999"


@dataclass(frozen=True)
class Choice:
    """A variant with a score: work in units of 10⁹ multiply-accumulates, parameters in millions, and its recipe."""

    arch: str
    family: str
    rule: str
    work: float
    parameters: float
    score: float
    recipe: str


def choices(job: Job, complexity: Mapping[str, Mapping[str, Any]]) -> list[Choice]:
    """Return the variants that have a job's score, those of the least work first."""
    found, recipes = [], recipe_pages.by_family()
    for cls in FAMILIES:
        links = recipe_pages.links(cls, recipes[cls.family])
        for arch, row in cls.reported.items():
            score, sources, count = getattr(row, job.column), "; ".join(row.sources), complexity[arch]
            if score is None or not all(word in sources for word in job.says):
                continue
            if any(word in sources for word in job.not_says) or "istilled" in arch:
                continue
            if job.max_side and max(count["size"]) > job.max_side:
                continue
            shown = next(
                (link for link in links[arch][0].split(", ") if link.startswith(f"[{recipe_pages.SCORE[job.column]}]")),
                "–",
            )
            work, parameters = count["macs"] / 1e9, count["parameters"] / 1e6
            found.append(Choice(arch, cls.family, cls.label_rule, work, parameters, score, shown))
    return sorted(found, key=lambda choice: (choice.work, -choice.score))


def front(found: list[Choice]) -> list[Choice]:
    """Return those of ``choices`` that no other one equals for less work."""
    best, kept = float("-inf"), []
    for choice in found:
        if choice.score > best:
            best = choice.score
            kept.append(choice)
    return kept


def tables(complexity: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables in Markdown; ``complexity`` is the counts in zoo.json."""
    lines = []
    for job in JOBS:
        found = choices(job, complexity)
        lines += [f"## {job.title}", ""]
        for name, shown in CHARTS.items():
            if shown is job:
                lines += [f"![{job.score} against work; blue: the rows of the table; gray: the others]({name})", ""]
        lines += [
            f"| variant | work | parameters, M | {job.score} | label rule | recipe |",
            "|---|---:|---:|---:|---|---|",
        ]
        for choice in front(found):
            cells = (f"[{choice.arch}](zoo.md#{choice.family})", f"{choice.work:.1f}", f"{choice.parameters:.0f}")
            lines.append(f"| {' | '.join(cells)} | {choice.score} | {choice.rule} | {choice.recipe} |")
        lines += ["", f"Of {len(found)} variants with such a score.", ""]
    return "\n".join(lines[:-1])


def charts(complexity: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the text of every chart by the name of its file."""
    return {name: _chart(job, choices(job, complexity)) for name, job in CHARTS.items()}


def _chart(job: Job, found: list[Choice]) -> str:
    best = front(found)
    marks = [(c.arch, FRONT if c in best else OTHER, (c.work, c.score), None) for c in found]
    marks.sort(key=lambda mark: mark[1] == FRONT)
    drawn = points(f"{job.score}, published", "multiply-accumulates of the backbone, 10⁹", marks)
    opened, rest = drawn.split(">", 1)
    # A file of its own names its language; the ground stays light where a page is dark.
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'{opened} xmlns="http://www.w3.org/2000/svg" font-family="sans-serif">{background}{rest}\n'
