"""Speed, compared side by side: every contestant runs in every round, so that a loaded machine slows all of them alike.

A ratio is the median over rounds of our time divided by theirs in the same round, with its quartiles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["Comparison", "Ratio", "Result", "measure", "speedups", "table"]

#: Calls are repeated within a round until one timing lasts this long, in seconds.
MIN_SECONDS = 0.05


@dataclass(frozen=True)
class Comparison:
    """Steps that do the same work.

    Attributes:
        title: the work and its sizes.
        steps: name -> a call that runs one step; the first is ours.
        max_ratio: name of an opponent -> the largest ratio ours/theirs that we accept.
        family: the family of backbones that is compared; None for any other subject.
    """

    title: str
    steps: Mapping[str, Callable[[], Any]]
    max_ratio: Mapping[str, float] = field(default_factory=dict)
    family: str | None = None


@dataclass(frozen=True)
class Ratio:
    """Our time divided by theirs: median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: list[float], theirs: list[float]) -> Ratio:
        """Return the ratio of two lists of times, round by round."""
        low, median, high = np.percentile(np.divide(ours, theirs), (25, 50, 75)).tolist()
        return cls(median, low, high)


@dataclass(frozen=True)
class Result:
    """The times of a comparison.

    Attributes:
        title: as in :class:`Comparison`.
        seconds: name -> the seconds of one step in every round; the first is ours.
        cpu_seconds: the same in the process's CPU time, over all threads, which other processes disturb less.
        max_ratio: as in :class:`Comparison`.
        family: as in :class:`Comparison`.
    """

    title: str
    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]
    max_ratio: Mapping[str, float]
    family: str | None = None

    @property
    def ours(self) -> str:
        """Name of the contestant that the others are compared with."""
        return next(iter(self.seconds))

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds of one step."""
        return {name: float(np.median(times)) for name, times in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, Ratio]:
        """Our time divided by each opponent's."""
        return {
            name: Ratio.of(self.seconds[self.ours], times) for name, times in self.seconds.items() if name != self.ours
        }

    @property
    def cpu_ratios(self) -> dict[str, Ratio]:
        """Our CPU time divided by each opponent's."""
        ours = self.cpu_seconds[self.ours]
        return {name: Ratio.of(ours, times) for name, times in self.cpu_seconds.items() if name != self.ours}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON."""
        return {
            "contest": self.title,
            "family": self.family,
            "ours": self.ours,
            "median_seconds": self.medians,
            "ratios": {name: {**vars(ratio), "bar": self.max_ratio.get(name)} for name, ratio in self.ratios.items()},
            "cpu_ratios": {name: vars(ratio) for name, ratio in self.cpu_ratios.items()},
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }


def measure(
    comparison: Comparison,
    rounds: int,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Time all contestants in ``rounds`` rounds, each of which starts with another of them.

    Args:
        comparison: the steps to run.
        rounds: number of timings of each contestant, after two rounds of warm-up.
        device: where the steps run; each clock is read when it has finished.
        progress: called as ``progress(done, total)`` after each round.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(2):
        fastest = min(_seconds(step, 1, wait)[0] for step in comparison.steps.values())
    # The same number of calls for all, so that contestants that draw at random see the same draws.
    calls = math.ceil(MIN_SECONDS / max(fastest, 1e-6))
    names = list(comparison.steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in names}
    for done in range(rounds):
        start = done % len(names)
        for name in names[start:] + names[:start]:
            wall, cpu = _seconds(comparison.steps[name], calls, wait)
            seconds[name].append(wall)
            cpu_seconds[name].append(cpu)
        progress(done + 1, rounds)
    return Result(comparison.title, seconds, cpu_seconds, comparison.max_ratio, comparison.family)


def table(results: list[Result]) -> str:
    """Return the results as a Markdown table: a row for us, then one for each opponent."""
    lines = [
        "| comparison | contestant | median, ms | ours / theirs | quartiles | CPU time | bar |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for result in results:
        lines.append(f"| {result.title} | {result.ours} | {1e3 * result.medians[result.ours]:.1f} | | | | |")
        for name, ratio in result.ratios.items():
            bar = f"{result.max_ratio[name]:.2f} |" if name in result.max_ratio else "|"
            lines.append(
                f"| | {name} | {1e3 * result.medians[name]:.1f} | {ratio.median:.2f} "
                f"| {ratio.low:.2f}–{ratio.high:.2f} | {result.cpu_ratios[name].median:.2f} | {bar}"
            )
    return "\n".join(lines)


def speedups(results: list[Result]) -> dict[str, float]:
    """Return the lowest of the ratios theirs/ours of the families, and their geometric mean; empty without families."""
    found = [1 / ratio.median for result in results if result.family for ratio in result.ratios.values()]
    return {"lowest": min(found), "geometric_mean": math.exp(np.log(found).mean())} if found else {}


def _seconds(step: Callable[[], Any], calls: int, wait: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds and the seconds of CPU time of one call."""
    wait()
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(calls):
        step()
    wait()
    return (time.perf_counter() - start) / calls, (time.process_time() - cpu_start) / calls
