"""A study's records as files that can be committed, and what follows from them.

``records.jsonl`` and ``records.csv`` hold numbers and what they depend on, sorted and without times; ``images.jsonl``
what was counted in each image; ``costs.jsonl`` times, memory and learning curves, which differ from run to run.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.errors import UserError
from mixtransfer.evaluation.records import SCHEMA, beside, pixel_counts
from mixtransfer.study.average_precision import METRIC, precision_scores
from mixtransfer.study.cells import MEASURED, RECORD
from mixtransfer.study.plan import FACTORS, Study
from mixtransfer.study.statistics import Difference, Summary, draws, paired, pixel_scores, summary

__all__ = ["RECORDS", "TABLE", "Results", "Row", "collect", "csv_of", "read_results", "write_results"]

#: The files of a study's results.
RECORDS, TABLE, IMAGES, COSTS = "records.jsonl", "records.csv", "images.jsonl", "costs.jsonl"
#: What a cell's cost keeps of its machine; its name is nobody's business.
MACHINE = ("device", "threads", "images_per_second", "test_peak_memory_mb")
#: Points of a learning curve that are kept.
POINTS = 60


def collect(study: Study) -> dict[str, str]:
    """Return the text of each file of results, of the cells that are done.

    Only folders are looked at: neither data nor weights need to be there.

    Raises:
        UserError: two folders hold a result of one cell.
    """
    records, images, costs = [], [], []
    for cell in study.cells:
        found = sorted((study.work_dir / "cells").glob(f"{cell.name}-????????/{RECORD}"))
        if len(found) > 1:
            raise UserError(
                f"{found[0].parent} and {found[1].parent}: two results of one cell; delete the one of before"
            )
        for path in found:
            record = _read(path)
            records.append(record)
            counted = beside(path.with_name(MEASURED), "images")
            if counted.is_file():
                images.append({"name": record["name"], "images": _read(counted)})
            costs.append({"name": record["name"], **_cost(path.parent, study.processes)})
    return {RECORDS: _lines(records), TABLE: csv_of(records), IMAGES: _lines(images), COSTS: _lines(costs)}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); delete it and run the study again") from error


def _lines(entries: Sequence[Mapping[str, Any]]) -> str:
    ordered = sorted(entries, key=lambda entry: entry["name"])
    style: dict[str, Any] = dict(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(json.dumps(entry, **style) + "\n" for entry in ordered)


def csv_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a record, with its metrics to six places."""
    metrics = sorted({name for record in records for name in record.get("metrics", {})})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *FACTORS, *metrics, "training_loss", "parameters", "macs", "hash"])
    for record in sorted(records, key=lambda record: record["name"]):
        found, model = record.get("metrics", {}), record.get("model", {})
        numbers = [found.get(name) for name in metrics] + [record.get("weights", {}).get("training_loss")]
        writer.writerow(
            [record["name"], *(record["factors"][factor] for factor in FACTORS)]
            + ["" if number is None else f"{number:.6f}" for number in numbers]
            + [model.get("parameters", ""), model.get("macs", ""), record["hash"]]
        )
    return text.getvalue()


def _cost(folder: Path, processes: int) -> dict[str, Any]:
    attempts = (folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
    steps: dict[str, dict[str, float]] = {}
    for attempt in map(json.loads, attempts):
        step = steps.setdefault(attempt["step"], {"attempts": 0, "seconds": 0.0})
        step["attempts"] += 1
        step["seconds"] = round(step["seconds"] + attempt["seconds"], 2)
        if attempt.get("cpu_seconds") is not None:
            step["cpu_seconds"] = round(step.get("cpu_seconds", 0.0) + attempt["cpu_seconds"], 2)
        if attempt.get("peak_memory_mb") is not None:
            step["peak_memory_mb"] = max(step.get("peak_memory_mb", 0.0), attempt["peak_memory_mb"])
    machine = beside(folder / MEASURED, "cost")
    measured = _read(machine) if machine.is_file() else {}
    return {
        "steps": steps,
        "device_hours": round(steps.get("train", {}).get("seconds", 0.0) * processes / 3600, 5),
        "curves": _curves(folder / "train"),
        "commands": [_command(folder / f"{name}.log") for name in steps],
        **{key: measured[key] for key in MACHINE if key in measured},
    }


def _command(log: Path) -> str:
    with open(log, encoding="utf-8") as file:
        return file.readline().strip().removeprefix("$ ").replace("-m mixtransfer", "mixtransfer", 1)


def _curves(work: Path) -> dict[str, list[list[float]]]:
    """Return what a training logged: its loss, in equal parts, and its validations."""
    points: dict[str, dict[int, float]] = {}
    for log in sorted(work.glob("*/vis_data/scalars.json")):
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line that a kill cut off
                continue
            validated = "loss" not in entry
            for key, value in entry.items():
                if isinstance(value, float) and ((validated and "time" not in key) or key == "loss"):
                    points.setdefault(key, {})[entry["step"]] = value
    curves = {}
    for key, found in points.items():
        pairs = [[step, found[step]] for step in sorted(found)]
        size = -(-len(pairs) // POINTS)
        parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        curves[key] = [[part[-1][0], round(float(np.mean([value for _, value in part])), 5)] for part in parts]
    return curves


def write_results(out: Path, texts: Mapping[str, str]) -> None:
    """Write files of results, each whole or not at all."""
    for name, text in texts.items():
        with replace_whole(out / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")


@dataclass
class Row:
    """The trainings of a study that differ in the seed only.

    Attributes:
        factors: levels of all factors but the seed.
        records: by seed.
    """

    factors: Mapping[str, str]
    records: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """The levels, in the order of the factors."""
        return tuple(self.factors.values())

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric by seed."""
        found = {seed: record["metrics"].get(metric) for seed, record in sorted(self.records.items())}
        return {seed: value for seed, value in found.items() if value is not None}


class Results:
    """Rows, summaries and differences that follow from a study's records.

    Args:
        study: the study.
        records, images, costs: entries of the files, see :func:`read_results`.
    """

    def __init__(self, study: Study, records: Sequence[Any], images: Sequence[Any], costs: Sequence[Any]):
        self.study = study
        names = {cell.name for cell in study.cells}
        self.records = {record["name"]: record for record in records if record["name"] in names}
        self.images = {entry["name"]: entry["images"] for entry in images if entry["name"] in self.records}
        self.costs = {entry["name"]: entry for entry in costs if entry["name"] in self.records}
        self.missing = [cell.name for cell in study.cells if cell.name not in self.records]
        self._drawn: dict[tuple[str, str], np.ndarray | None] = {}

    @cached_property
    def rows(self) -> list[Row]:
        """Rows in the order of the study's cells; those without any record are left out."""
        rows: dict[tuple, Row] = {}
        for cell in self.study.cells:
            record = self.records.get(cell.name)
            if record is not None:
                factors = {factor: str(cell.factors[factor]) for factor in FACTORS[:-1]}
                row = rows.setdefault(tuple(factors.values()), Row(factors))
                row.records[cell.factors["seed"]] = record
        return list(rows.values())

    def metrics(self, row: Row) -> tuple[str, ...]:
        """Return the metrics of a row's task, the first of which is compared."""
        return next(
            cell.metrics
            for cell in self.study.cells
            if all(str(cell.factors[factor]) == level for factor, level in row.factors.items())
        )

    def summary(self, row: Row, metric: str) -> Summary:
        """Return mean and spreads of a metric."""
        values = row.values(metric)
        return summary(values, self._mean_drawn(row, metric, list(values)))

    def reference(self, row: Row, factor: str) -> Row | None:
        """Return the row that a row is compared with in a factor: equal in all others."""
        level = self.study.compare[factor]
        if row.factors[factor] == level:
            return None
        wanted = {**row.factors, factor: level}
        return next((other for other in self.rows if other.factors == wanted), None)

    def differences(self) -> Iterator[tuple[str, Row, Row, Difference]]:
        """Yield factor, row, reference and difference of every comparison that the study asks for."""
        for factor in self.study.compare:
            for row in self.rows:
                reference = self.reference(row, factor)
                found = None if reference is None else self.difference(row, reference)
                if reference is not None and found is not None:
                    yield factor, row, reference, found

    def difference(self, row: Row, reference: Row, metric: str | None = None) -> Difference | None:
        """Return the difference of a row from another, in its task's first metric by default."""
        metric = metric or next(iter(self.metrics(row)), "")
        values, others = row.values(metric), reference.values(metric)
        both = sorted(set(values) & set(others))
        drawn = [self._mean_drawn(side, metric, both) for side in (row, reference)]
        first, second = drawn
        pair = None if first is None or second is None or not both else (first, second)
        return paired(values, others, pair)

    def _mean_drawn(self, row: Row, metric: str, seeds: Sequence[int]) -> np.ndarray | None:
        found = [self._drawn_of(row.records[seed], metric) for seed in seeds]
        kept = [drawn for drawn in found if drawn is not None]
        return np.mean(kept, axis=0) if kept and len(kept) == len(found) else None

    def _drawn_of(self, record: Mapping[str, Any], metric: str) -> np.ndarray | None:
        key = record["name"], metric
        if key not in self._drawn:
            images = self.images.get(record["name"]) or []
            score = _score(images, record, metric)
            self._drawn[key] = score(draws(len(images))) if score else None
        return self._drawn[key]


def _score(images: Sequence[Mapping], record: Mapping, metric: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return what computes a metric in every draw of the bootstrap; None where images do not tell."""
    if len(images) < 2:
        return None
    if "pixels" in images[0] and metric in ("mIoU", "mAcc", "aAcc"):
        counts = pixel_counts(images, len(record["dataset"]["classes"]))
        return lambda times: pixel_scores(counts, times, metric)
    if "predicted" in images[0] and metric == "accuracy/top1":
        right = np.array([image["predicted"] in np.atleast_1d(image["label"]) for image in images])
        return lambda times: 100 * (times @ right) / len(images)
    if "matches" in images[0] and (name := METRIC.fullmatch(metric)) and name[1] in images[0]["matches"]:
        found = [image["matches"][name[1]] for image in images]
        return lambda times: precision_scores(found, times, int(name[2]) / 100 if name[2] else None)
    return None


def read_results(study: Study, out: Path, texts: Mapping[str, str] | None = None) -> Results:
    """Return the results in a folder; ``texts`` stand for its files where given.

    Raises:
        UserError: no records there, or of a form that this version does not know.
    """
    contents = []
    for name in (RECORDS, IMAGES, COSTS):
        try:
            text = texts[name] if texts else (out / name).read_text(encoding="utf-8")
            contents.append([json.loads(line) for line in text.splitlines()])
        except FileNotFoundError:
            raise UserError(f"{out / name}: no such file; write it with 'study {study.file} report'") from None
        except ValueError as error:
            raise UserError(f"{out / name}: is damaged ({error}); write it anew with 'report'") from error
    newer = next((record["name"] for record in contents[0] if record.get("schema", 0) > SCHEMA), None)
    if newer:
        raise UserError(f"{out / RECORDS}: {newer} is of a later version of mixtransfer; use that")
    return Results(study, *contents)
