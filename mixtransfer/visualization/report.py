"""A report as one self-contained HTML file: pictures are embedded, and it is legible on a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

__all__ = ["commands", "figure", "headline", "page", "paragraph", "section", "table"]

STYLE = """
:root { --ink: #22303c; --soft: #5b6b79; --line: #d9dee3; --ground: #f6f7f9; --accent: #2563a8; --second: #f08a24; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem; margin: 1rem 0; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.numbers div { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; }
.numbers b { display: block; font-size: 2rem; line-height: 1.2; color: var(--accent); }
.numbers div.second b { color: var(--second); }
.numbers span { color: var(--soft); font-size: .9rem; }
figure { margin: .8rem 0; }
figure img { display: block; width: 100%; max-width: 40rem; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; font-size: .9rem; }
pre { background: var(--ground); border-radius: 6px; padding: .7rem .9rem; overflow-x: auto; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 1rem; }
.step { display: flex; justify-content: space-between; gap: 1rem; margin: 0; font-weight: 600; }
.step span { color: var(--soft); font-weight: 400; white-space: nowrap; }
@media (max-width: 40rem) { main { padding: .75rem .6rem 2rem; } section { padding: .8rem .7rem; } }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Return the whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"<main>\n<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</main>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """Return a box with a heading."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def headline(numbers: Sequence[tuple[str, str]]) -> str:
    """Return the main figures in large type, as (number, meaning); the first one is set off."""
    boxes = (
        f"<div{' class=second' if place else ''}><b>{escape(number)}</b><span>{escape(what)}</span></div>"
        for place, (number, what) in enumerate(numbers)
    )
    return f'<div class="numbers">{"".join(boxes)}</div>'


def figure(path: Path, caption: str) -> str:
    """Return an embedded picture, which fills a phone and stays small on a desktop, as sheets are made for."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def commands(steps: Sequence[tuple[str, str, str]]) -> str:
    """Return commands to copy, as (purpose, time taken, command)."""
    return "\n".join(
        f'<p class="step">{escape(what)}<span>{escape(took)}</span></p><pre>{escape(command)}</pre>'
        for what, took, command in steps
    )
