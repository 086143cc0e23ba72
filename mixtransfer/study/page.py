"""A study's page: one HTML file that needs nothing else, sorts and filters without a server, and prints."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mixtransfer.study import charts
from mixtransfer.study.pictures import PICTURES
from mixtransfer.study.plan import FACTORS
from mixtransfer.study.results import Results, Row
from mixtransfer.study.statistics import POWER, REPLICATES
from mixtransfer.study.tables import (
    COMPARED,
    TITLES,
    comparison,
    constant,
    disagreements,
    inside,
    label,
    partial,
    tables,
    varying,
)
from mixtransfer.visualization import report

__all__ = ["page"]

STYLE = """
.scroll { overflow-x: auto; margin: .3rem 0 .8rem; }
.scroll table { width: auto; min-width: 100%; font-size: .92rem; }
.scroll th { cursor: pointer; white-space: nowrap; user-select: none; }
.scroll th[aria-sort]::after { content: " ▴"; } .scroll th[aria-sort=descending]::after { content: " ▾"; }
.scroll td { white-space: nowrap; } .scroll td.text, .scroll th.text { text-align: left; }
.scroll td:first-child, .scroll th:first-child { position: sticky; left: 0; background: #fff; }
.scroll td:first-child { white-space: normal; min-width: 7rem; }
td b { color: var(--accent); } td small { color: var(--soft); display: block; }
input[type=search] { font: inherit; width: 100%; max-width: 24rem; padding: .35rem .6rem; border: 1px solid var(--line);
  border-radius: 6px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr)); gap: .8rem; }
.chart { width: 100%; height: auto; font-family: inherit; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: .3rem 0;
  font-size: .9rem; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
details { border-top: 1px solid var(--line); padding: .4rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
details:target > summary { color: var(--accent); font-weight: 600; }
.note { border-left: 4px solid var(--second); padding-left: .8rem; } a { color: var(--accent); }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: .3rem 0; }
  input[type=search] { display: none; } .scroll { overflow: visible; } .cells { break-before: page; }
  .scroll table { font-size: .78rem; } .scroll td, .scroll th { white-space: normal; } }
"""
SCRIPT = """
document.querySelectorAll('.scroll table').forEach(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, k) => head.addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') === 'descending';
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const value = row => row.cells[k].dataset.v ?? row.cells[k].textContent;
    [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === '' || y === '') return (x === '') - (y === '');
      return (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y) * (up ? 1 : -1);
    }).forEach(row => body.append(row));
  }));
});
document.querySelectorAll('input[type=search]').forEach(input => input.addEventListener('input', () => {
  const words = input.value.toLowerCase().split(/\\s+/);
  input.closest('section').querySelectorAll('tbody tr').forEach(row => {
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
}));
const open = () => { const cell = document.getElementById(location.hash.slice(1)); if (cell) cell.open = true; };
addEventListener('hashchange', open); open();
"""


def page(results: Results, out: Path) -> str:
    """Return the whole page; ``out`` is the folder of the records."""
    study = results.study
    parts = [f"<style>{STYLE}</style>", report.paragraph(study.question)]
    if results.missing:
        names = f"<details><summary>Which</summary>{escape(', '.join(results.missing))}</details>"
        parts.append(f'<div class="note">{report.paragraph(partial(results))}{names}</div>')
    parts.append(report.section("How to read this", *_reading(results)))
    for table in tables(results):
        parts.append(report.section(f"{table.task}: {table.metric}", *_table(results, table)))
    if comparison(results):
        parts.append(report.section("Differences, paired by seed", *_differences(results)))
    parts.append(report.section("How they learned", *_curves(results)))
    parts.append(report.section("What it cost", *_costs(results)))
    if (out / PICTURES).is_file():
        caption = "Test images, their ground truth, and the predictions of the first seed."
        parts.append(report.section("Predictions", report.figure(out / PICTURES, caption)))
    cells = [_cell(results, record) for record in results.records.values()]
    parts.append(report.section("Cells", '<div class="cells">', *cells, "</div>"))
    parts.append(f"<script>{SCRIPT}</script>")
    return report.page(study.title, parts)


def _reading(results: Results) -> list[str]:
    study = results.study
    same = constant(results)
    seeds = ", ".join(map(str, study.seeds))
    choice = (
        "each seed draws its own labeled images" if study.fraction_seed is None else "all seeds have the same images"
    )
    texts = [
        f"Each row is the mean over the seeds {seeds}, measured on the validation images after the last iteration; no"
        f" checkpoint was chosen by its score." + (f" The same in all rows: {same}." if same else ""),
        "“± seeds” is the standard deviation between trainings that differ in the seed alone, “± images” the standard"
        f" deviation of the mean over images drawn anew ({REPLICATES} draws). They answer different questions and are"
        " not to be added.",
        "Differences are between trainings with the same seed. An interval that holds zero says that these seeds cannot"
        " tell the difference from chance, not that there is none: “visible” is the true difference that as many seeds"
        f" would show in {POWER:.0%} of such studies.",
    ]
    if any(cell.fraction != 1 for cell in study.cells):
        texts.append(f"Fractions of the labels are drawn so that every class keeps its share; {choice}.")
    if not results.images:
        texts.append("Nothing was counted image by image, so there is no spread over images.")
    return [report.paragraph(text) for text in [*texts, *disagreements(results)]]


def _table(results: Results, table: Any) -> list[str]:
    factors = [head for head in table.header if head in FACTORS or head in TITLES.values()]
    place = table.header.index(table.metric)
    lines = []
    for row, cells in table.rows:
        links = " ".join(
            f'<a href="#{escape(row.records[seed]["name"])}">{value:.1f}</a>'
            for seed, value in row.values(table.metric).items()
        )
        shown = [(cell, escape(cell)) for cell in cells]
        shown[place] = (cells[place], f"<b>{escape(cells[place])}</b><small>{links}</small>")
        lines.append([(value, text, k < len(factors)) for k, (value, text) in enumerate(shown)])
    heads = [(head, k < len(factors)) for k, head in enumerate(table.header)]
    return [_search(lines), _html_table(heads, lines)]


def _differences(results: Results) -> list[str]:
    lines = []
    for row, _, difference, text in comparison(results):
        links = " ".join(
            f'<a href="#{escape(row.records[seed]["name"])}">{value:+.1f}</a>'
            for seed, value in difference.values.items()
        )
        shown = [(cell, escape(cell), k == 0) for k, cell in enumerate(text)]
        shown[1] = (text[1], f"<b>{escape(text[1])}</b><small>{links}</small>", False)
        lines.append(shown)
    return [_search(lines), _html_table([(head, k == 0) for k, head in enumerate(COMPARED)], lines)]


def _search(lines: Sequence[Any]) -> str:
    """Return the field that filters the rows of a section; nothing for few of them."""
    return '<input type="search" placeholder="Show rows with …" aria-label="Show rows with">' if len(lines) > 6 else ""


def _html_table(heads: Sequence[tuple[str, bool]], lines: Sequence[Sequence[tuple[str, str, bool]]]) -> str:
    """Return a table; cells are what they are sorted by, their HTML, and whether they are text."""

    def kind(text: bool) -> str:
        return ' class="text"' if text else ""

    head = "".join(f"<th{kind(text)}>{escape(name)}</th>" for name, text in heads)
    body = "\n".join(
        "<tr>"
        + "".join(f'<td{kind(text)} data-v="{escape(value)}">{html}</td>' for value, html, text in line)
        + "</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _curves(results: Results) -> list[str]:
    """Draw the first metric's validations and the training loss, a chart for each task and fraction."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in results.rows:
        groups[row.factors["task"], row.factors["fraction"]].append(row)
    names: dict[str, str] = {}
    drawn = []
    for (task, fraction), rows in groups.items():
        factors = [factor for factor in inside(results, rows[0]) if factor != "fraction"]
        metric = next(iter(results.metrics(rows[0])), "loss")
        for key in (metric, "loss"):
            lines = []
            for row in rows:
                name = label(row, factors) or task
                color = names.setdefault(name, charts.COLORS[len(names) % len(charts.COLORS)])
                single = [curve for record in row.records.values() if (curve := _curve(results, record, key))]
                lines += [(f"{name}, seed", color, curve, True) for curve in single if len(single) > 1]
                if single:
                    lines.append((name, color, _mean(single), False))
            if lines:
                part = (
                    f", {fraction} of labels" if "fraction" in varying(results) and task in _fractions(results) else ""
                )
                what = "training loss" if key == "loss" else f"{key} in validation"
                drawn.append(charts.curves(f"{task}{part}: {what}", "step", lines))
    if not drawn:
        return [report.paragraph("No training left a log.")]
    text = (
        "Thick lines are means over seeds, thin ones single trainings. A validation may see fewer images than the test."
    )
    return [report.paragraph(text), charts.legend(names), f'<div class="charts">{"".join(drawn)}</div>']


def _fractions(results: Results) -> set[str]:
    return {row.factors["task"] for row in results.rows if row.factors["fraction"] not in ("–", "1")}


def _curve(results: Results, record: Mapping[str, Any], key: str) -> list[tuple[float, float]]:
    curves = results.costs.get(record["name"], {}).get("curves", {})
    return [(x, y) for x, y in curves.get(key, [])]


def _mean(single: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    values: dict[float, list[float]] = defaultdict(list)
    for curve in single:
        for x, y in curve:
            values[x].append(y)
    return [(x, float(np.mean(found))) for x, found in sorted(values.items()) if len(found) == len(single)]


def _costs(results: Results) -> list[str]:
    """Draw the first metric against what a training takes."""
    names: dict[str, str] = {}
    axes: dict[tuple[str, str], list] = defaultdict(list)
    for row in results.rows:
        metric = next(iter(results.metrics(row)), None)
        if metric is None:
            continue
        found = results.summary(row, metric)
        name = label(row, inside(results, row)) or row.factors["task"]
        color = names.setdefault(name, charts.COLORS[len(names) % len(charts.COLORS)])
        for axis, value in _cost(results, row).items():
            axes[f"{row.factors['task']}: {metric}", axis].append((name, color, (value, found.mean), found.seeds))
    drawn = [charts.points(title, axis, marks) for (title, axis), marks in axes.items()]
    text = "Bars are one standard deviation between seeds. Hours are those of training, on the machine that it ran on."
    return [report.paragraph(text), charts.legend(names), f'<div class="charts">{"".join(drawn)}</div>']


def _cost(results: Results, row: Row) -> dict[str, float]:
    costs = [results.costs[record["name"]] for record in row.records.values() if record["name"] in results.costs]
    found = {
        "parameters, millions": [
            record["model"]["parameters"] / 1e6 for record in row.records.values() if "model" in record
        ]
    }
    found["device hours of a training"] = [cost["device_hours"] for cost in costs if cost["device_hours"]]
    peaks = [cost["steps"].get("train", {}).get("peak_memory_mb") for cost in costs]
    found["most host memory in training, GB"] = [peak / 1024 for peak in peaks if peak]
    return {axis: float(np.mean(values)) for axis, values in found.items() if values}


def _cell(results: Results, record: Mapping[str, Any]) -> str:
    cost = results.costs.get(record["name"], {})
    metrics = ", ".join(f"{name} {value:.2f}" for name, value in record["metrics"].items() if value is not None)
    weights, model = record.get("weights", {}), record.get("model", {})
    facts = [
        ("identity", record["hash"]),
        ("starts from", json.dumps(record.get("starts_from")) if record.get("starts_from") else "random weights"),
        ("learns from", json.dumps(record["teacher"]) if record.get("teacher") else None),
        ("iterations, seed", f"{weights.get('iterations')}, {weights.get('seed')}"),
        ("weights (SHA-256), selection", f"{weights.get('sha256')}, {weights.get('selection')}"),
        ("training loss at the end", weights.get("training_loss")),
        ("parameters, multiply-accumulates", f"{model.get('parameters')}, {model.get('macs')} at {model.get('input')}"),
        ("data", json.dumps(record["identity"]["data"])),
        ("commit", f"{record.get('commit')}{', with changes' if record.get('dirty') else ''}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        ("time, memory", json.dumps(cost.get("steps", {}))),
    ]
    lines = "\n".join(f"{name}: {value}" for name, value in facts if value is not None)
    commands = "\n".join(cost.get("commands", []))
    config = json.dumps(record["identity"]["config"], indent=1, sort_keys=True, ensure_ascii=False)
    return (
        f'<details id="{escape(record["name"])}"><summary>{escape(record["name"])}: {escape(metrics)}</summary>'
        f"<pre>{escape(lines)}</pre><pre>{escape(commands)}</pre>{_classes(record)}"
        f"<details><summary>config</summary><pre>{escape(config)}</pre></details></details>"
    )


def _classes(record: Mapping[str, Any]) -> str:
    classes = record.get("per_class") or {}
    if not classes:
        return ""
    names = list(next(iter(classes.values())))
    heads = [("class", True), *((name, False) for name in names)]
    lines = [
        [(name, escape(name), True)]
        + [(text := "" if values.get(key) is None else f"{values[key]:.1f}", text, False) for key in names]
        for name, values in classes.items()
    ]
    return _html_table(heads, lines)
