"""The state of a study, as a table on the terminal."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean

from rich.table import Table

from mixtransfer.errors import visible
from mixtransfer.study.cells import DONE, FAILED, NEW, RUNNING, STOPPED, WAITING, CellFolder

__all__ = ["duration", "status_table", "summary"]

#: How states are shown.
COLORS = {DONE: "green", RUNNING: "cyan", STOPPED: "yellow", FAILED: "red", NEW: "dim", WAITING: "dim"}


def duration(seconds: float) -> str:
    """Return seconds as "1 h 05 min", "3 min 20 s" or "12 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def spent(folder: CellFolder) -> float:
    """Return the seconds that a cell's commands have run, all attempts together."""
    try:
        lines = (folder.path / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0.0
    return sum(json.loads(line)["seconds"] for line in lines if line.endswith("}"))


def summary(cells: Sequence[CellFolder], states: Sequence[tuple[str, str]]) -> str:
    """Return in one line how many cells are in which state, and the time left if others take as long as those done."""
    counts = Counter(state for state, _ in states)
    known = defaultdict(list)
    for folder, (state, _) in zip(cells, states, strict=True):
        if state == DONE:
            known[folder.cell.factors["task"]].append(spent(folder))
    left = 0.0
    unknown = False
    for folder, (state, _) in zip(cells, states, strict=True):
        if state not in (DONE, FAILED):
            times = known[folder.cell.factors["task"]]
            unknown |= not times
            left += max(mean(times) - spent(folder), 0) if times else 0
    text = ", ".join(f"{counts[state]} {state}" for state in COLORS if counts[state])
    if left:
        running = max(counts[RUNNING], 1)
        text += f"; {'more than ' if unknown else 'about '}{duration(left / running)} left, {running} at a time"
    return text


def status_table(cells: Sequence[CellFolder], title: str) -> Table:
    """Return the table of all cells."""
    states = [folder.state() for folder in cells]
    table = Table(title=visible(title), caption=summary(cells, states), title_justify="left", caption_justify="left")
    for name in ("cell", "state", "time", ""):
        table.add_column(name, overflow="fold")
    for folder, (state, more) in zip(cells, states, strict=True):
        seconds = spent(folder)
        table.add_row(
            folder.cell.name,
            f"[{COLORS[state]}]{state}[/]",
            duration(seconds) if seconds else "",
            visible(more).replace("[", r"\["),
        )
    return table
