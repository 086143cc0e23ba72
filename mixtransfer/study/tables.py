"""A study's tables as Markdown, CSV and LaTeX, and the sentences about them."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mixtransfer.study.plan import FACTORS, NONE
from mixtransfer.study.results import Results, Row
from mixtransfer.study.statistics import Difference

__all__ = [
    "Table",
    "comparison",
    "constant",
    "disagreements",
    "inside",
    "label",
    "latex",
    "markdown",
    "partial",
    "summary_csv",
    "tables",
    "varying",
]

#: How factors are called in tables.
TITLES = {"fraction": "labels"}
ROLE, PUBLISHED = "control", "published"
#: Heads of the columns of differences.
COMPARED = ("difference", "mean", "95 % interval", "told from zero", "seeds", "visible", "interval over images")


@dataclass(frozen=True)
class Table:
    """The rows of one task, as text: the first metric with both spreads, the others, controls and published numbers."""

    task: str
    metric: str
    header: tuple[str, ...]
    rows: tuple[tuple[Row, tuple[str, ...]], ...]


def varying(results: Results, rows: Sequence[Row] | None = None) -> list[str]:
    """Return the factors in which rows differ."""
    chosen = results.rows if rows is None else rows
    return [factor for factor in FACTORS[:-1] if len({row.factors[factor] for row in chosen}) > 1]


def inside(results: Results, row: Row) -> list[str]:
    """Return the factors in which the rows of a row's task differ."""
    rows = [other for other in results.rows if other.factors["task"] == row.factors["task"]]
    return [factor for factor in varying(results, rows) if factor != "task"]


def constant(results: Results) -> str:
    """Return what is the same in all rows, as a part of a sentence."""
    same = [factor for factor in FACTORS[:-1] if factor not in varying(results)]
    levels = {factor: results.rows[0].factors[factor] for factor in same}
    return ", ".join(f"{TITLES.get(factor, factor)} {level}" for factor, level in levels.items() if level != NONE)


def label(row: Row, factors: Sequence[str]) -> str:
    """Return the levels of a row in these factors."""
    levels = [(factor, row.factors[factor]) for factor in factors if row.factors[factor] != NONE]
    return " · ".join(f"{level} of labels" if factor == "fraction" else level for factor, level in levels)


def tables(results: Results) -> Iterator[Table]:
    """Yield one table a task."""
    for task in dict.fromkeys(row.factors["task"] for row in results.rows):
        rows = [row for row in results.rows if row.factors["task"] == task]
        factors = inside(results, rows[0])
        metrics = results.metrics(rows[0])
        if not metrics:
            continue
        roles = [_role(results, row) for row in rows]
        printed = [_published(results, row, metrics[0]) for row in rows]
        header = [*(TITLES.get(factor, factor) for factor in factors), metrics[0], "± seeds", "± images", "n"]
        header += [*metrics[1:], *([ROLE] if any(roles) else []), *([PUBLISHED] if any(printed) else [])]
        lines = []
        for row, role, number in zip(rows, roles, printed, strict=True):
            main = results.summary(row, metrics[0])
            cells = [row.factors[factor] for factor in factors]
            cells += [f"{main.mean:.2f}", _optional(main.seeds), _optional(main.images), str(len(main.values))]
            for metric in metrics[1:]:
                cells.append(f"{results.summary(row, metric).mean:.2f}")
            cells += ([role] if any(roles) else []) + ([number] if any(printed) else [])
            lines.append((row, tuple(cells)))
        yield Table(task, metrics[0], tuple(header), tuple(lines))


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _role(results: Results, row: Row) -> str:
    return ", ".join(results.study.controls[level] for level in row.key if level in results.study.controls)


def _published(results: Results, row: Row, metric: str) -> str:
    for entry in results.study.published:
        levels = [factor for factor in FACTORS[:-1] if factor in entry]
        if entry.get("metric", metric) == metric and all(row.factors[f] == str(entry[f]) for f in levels):
            return f"{entry['value']} ({entry.get('schedule', '')}; {entry['source']})"
    return ""


def comparison(results: Results) -> list[tuple[Row, Row, Difference, tuple[str, ...]]]:
    """Return the differences that a study asks for: both rows, the difference, and the line of :data:`COMPARED`."""
    found = list(results.differences())
    yardsticks = {
        (factor, *(reference.key)): abs(difference.mean)
        for factor, row, reference, difference in found
        if results.study.controls.get(row.factors[factor]) == "yardstick"
    }
    lines = []
    for factor, row, reference, difference in found:
        tasks = ["task"] if "task" in varying(results) else []
        rest = label(row, [*tasks, *(other for other in inside(results, row) if other != factor)])
        name = f"{row.factors[factor]} − {reference.factors[factor]}" + (f", {rest}" if rest else "")
        yardstick = yardsticks.get((factor, *reference.key))
        if yardstick:
            name += f" ({difference.mean / yardstick:+.1f} yardsticks)"
        interval = "" if difference.low is None else f"{difference.low:+.2f} … {difference.high:+.2f}"
        images = f"{difference.images[0]:+.2f} … {difference.images[1]:+.2f}" if difference.images else ""
        told, visible = _told(difference), _optional(difference.visible)
        count = str(len(difference.values))
        text = (name, f"{difference.mean:+.2f}", interval, told, count, visible, images)
        lines.append((row, reference, difference, text))
    return lines


def _told(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return "one seed"
    return "yes" if difference.low > 0 or difference.high < 0 else "no"


def disagreements(results: Results) -> list[str]:
    """Return a sentence for each task and metric that orders the rows otherwise than the first metric does."""
    sentences = []
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in results.rows:
        groups[row.factors["task"]].append(row)
    for task, rows in groups.items():
        first, *others = results.metrics(rows[0]) or ("",)
        main = [results.summary(row, first).mean for row in rows] if first else []
        for metric in others:
            means = [results.summary(row, metric).mean for row in rows]
            pairs = [
                (a, b)
                for a in range(len(rows))
                for b in range(a + 1, len(rows))
                if (main[a] - main[b]) * (means[a] - means[b]) < 0
            ]
            if pairs:
                a, b = pairs[0]
                factors, every = varying(results, rows), len(rows) * (len(rows) - 1) // 2
                sentences.append(
                    f"{task}: {metric} orders {len(pairs)} of {every} pairs of rows otherwise than {first}, such as"
                    f" {label(rows[a], factors)} and {label(rows[b], factors)}."
                )
    return sentences


def markdown(results: Results) -> str:
    """Return all tables as Markdown."""
    study = results.study
    parts = [f"# {study.title}", study.question, partial(results)]
    for table in tables(results):
        aligned = ["---" if head in TITLES.values() or head in FACTORS else "---:" for head in table.header]
        parts.append(f"## {table.task}: {table.metric}")
        lines = [_cells(table.header), _cells(aligned), *(_cells(cells) for _, cells in table.rows)]
        parts.append("\n".join(lines))
    compared = comparison(results)
    if compared:
        parts.append("## Differences, paired by seed")
        lines = [_cells(COMPARED), _cells(["---", *["---:"] * (len(COMPARED) - 1)])]
        parts.append("\n".join([*lines, *(_cells(text) for _, _, _, text in compared)]))
    parts += disagreements(results)
    return "\n\n".join(part for part in parts if part) + "\n"


def partial(results: Results) -> str:
    """Return the sentence that a study is partial; empty where it is not."""
    if not results.missing:
        return ""
    total = len(results.study.cells)
    return f"This study is partial: {len(results.missing)} of its {total} cells have no result yet."


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def summary_csv(results: Results) -> str:
    """Return one line a row and metric, with both spreads, at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FACTORS[:-1], "metric", "mean", "deviation_between_seeds", "deviation_over_images", "seeds"])
    for row in results.rows:
        for metric in results.metrics(row):
            found = results.summary(row, metric)
            numbers = ["" if value is None else f"{value:.6f}" for value in (found.mean, found.seeds, found.images)]
            writer.writerow([*row.key, metric, *numbers, len(found.values)])
    return text.getvalue()


def latex(results: Results) -> str:
    """Return all tables in LaTeX, for the package booktabs."""
    parts = []
    for table in tables(results):
        kinds = "".join("l" if head in TITLES.values() or head in FACTORS else "r" for head in table.header)
        lines = [" & ".join(map(_escaped, cells)) + r" \\" for _, cells in table.rows]
        parts.append(
            "\n".join(
                [
                    f"% {results.study.title}: {table.task}. {partial(results)}".strip(),
                    rf"\begin{{tabular}}{{{kinds}}}",
                    r"\toprule",
                    " & ".join(map(_escaped, table.header)) + r" \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    for old, new in (
        ("\\", r"\textbackslash "),
        ("_", r"\_"),
        ("%", r"\%"),
        ("&", r"\&"),
        ("#", r"\#"),
        ("±", r"$\pm$"),
    ):
        text = text.replace(old, new)
    return text
