"""A study's file, read into its cells: which training, on what, from which weights, with which seed.

The file is an mmengine config; ``docs/studies.md`` lists its entries. Names that begin with a capital or an underscore
are the file's own variables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from mixtransfer.engine.config import parse_config
from mixtransfer.errors import UserError, unknown_name

__all__ = ["FACTORS", "Cell", "Study", "read_study"]

#: What the cells of a study differ in, the slowest first.
FACTORS = ("task", "backbone", "pretraining", "fraction", "hooks", "seed")
#: Entries of a study's file, and of its parts.
ENTRIES = (
    "title question work_dir backbones pretraining tasks hooks fractions seeds fraction_seed compare controls"
    " published per_image processes slurm"
).split()
TASK = "kind config data options metrics pretraining hooks fractions recipe".split()
PRETRAINING = "weights config data options metrics seed teacher".split()
PUBLISHED = "value source schedule metric task backbone pretraining hooks fraction".split()
#: Numbers of a probe's recipe that a task may set.
RECIPE = ("iterations", "batch")
#: Kind of task -> what is compared where the study does not say.
METRICS = {"train": ("mIoU",), "probe": ("mIoU",), "pretrain": ("accuracy/top1",)}
#: The level of a factor that a task does not have.
NONE = "–"
PRETRAIN = "pretraining"


@dataclass(frozen=True)
class Cell:
    """One training and its measurement.

    Attributes:
        name: readable and unique in the study.
        factors: the level of each of :data:`FACTORS`.
        kind: "pretrain", "train" or "probe".
        arch: the backbone's architecture.
        config, data, options: as the commands take them.
        metrics: that have to be measured.
        weights: a file that the backbone starts from; None for random weights, or where ``source`` makes it.
        source: the cell that makes the weights; of a pretraining, the one that is its teacher.
        recipe: numbers of a probe's recipe that are not the usual ones.
    """

    name: str
    factors: Mapping[str, Any]
    kind: str
    arch: str
    config: str
    data: str | None
    options: tuple[str, ...]
    metrics: tuple[str, ...]
    weights: str | None = None
    source: Cell | None = None
    recipe: Mapping[str, int] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.factors["seed"]

    @property
    def fraction(self) -> Fraction:
        """The share of the labeled training images."""
        text = self.factors["fraction"]
        return Fraction(1) if text == NONE else Fraction(text)


@dataclass(frozen=True)
class Study:
    """A study: what its file says, and its cells in the order in which they run."""

    file: Path
    title: str
    question: str
    work_dir: Path
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    fraction_seed: int | None
    compare: Mapping[str, str]
    controls: Mapping[str, str]
    published: tuple[Mapping[str, Any], ...]
    per_image: bool
    processes: int
    slurm: Mapping[str, Any] = field(default_factory=dict)


def read_study(path: str | Path) -> Study:
    """Read a study's file.

    Raises:
        UserError: no such file, or an entry that is missing, unknown or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such study; give its file, see docs/studies.md")
    content = parse_config(path).to_dict()
    own = {key: value for key, value in content.items() if not (key[:1].isupper() or key.startswith("_"))}
    _only(own, ENTRIES, str(path))
    for key in ("tasks", "backbones"):
        if not own.get(key):
            raise UserError(f"{path}: it has no {key}; see docs/studies.md")
    seeds = own.get("seeds", 3)
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds) or any(not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise UserError(f"{path}: seeds={own.get('seeds')}: give a number, or a list of different whole numbers from 0")
    cells = tuple(_Cells(str(path), own, seeds).all())
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{path}: two cells have the name {twice}; give other names to levels")
    compare = own.get("compare") or {}
    for factor, level in compare.items():
        if factor not in FACTORS[1:-1]:
            raise unknown_name(f"factor of {path}: compare:", factor, FACTORS[1:-1])
        levels = {str(cell.factors[factor]) for cell in cells}
        if level not in levels:
            raise unknown_name(f"level of {path}: compare.{factor}:", str(level), levels)
    for row in own.get("published") or ():
        _only(row, PUBLISHED, f"{path}: published")
    processes = own.get("processes", 1)
    if not isinstance(processes, int) or processes < 1:
        raise UserError(f"{path}: processes={processes}: give the number of processes of a cell, from 1")
    return Study(
        file=path,
        title=str(own.get("title") or path.stem),
        question=str(own.get("question") or ""),
        work_dir=Path(own.get("work_dir") or Path("work_dirs") / path.stem),
        cells=cells,
        seeds=seeds,
        fraction_seed=own.get("fraction_seed"),
        compare=compare,
        controls=own.get("controls") or {},
        published=tuple(own.get("published") or ()),
        per_image=bool(own.get("per_image", True)),
        processes=processes,
        slurm=own.get("slurm") or {},
    )


class _Cells:
    """Makes the cells of a study's entries."""

    def __init__(self, file: str, entries: Mapping[str, Any], seeds: Sequence[int]):
        self.file, self.seeds = file, seeds
        backbones = entries["backbones"]
        self.backbones = self._levels("backbones", backbones)
        self.pretraining = self._levels("pretraining", entries.get("pretraining") or {"scratch": None})
        self.hooks = self._levels("hooks", entries.get("hooks") or {NONE: []})
        self.fractions = [self._fraction(value) for value in entries.get("fractions") or [1]]
        self.tasks = self._levels("tasks", entries["tasks"])
        self.pretrained: dict[tuple[str, str, int], Cell] = {}

    def _levels(self, entry: str, value: Any) -> dict[str, Any]:
        if isinstance(value, list | tuple):
            value = {str(name): {} for name in value}
        if not isinstance(value, Mapping):
            raise UserError(f"{self.file}: {entry}={value!r}: give names with their settings, dict(NAME=...)")
        odd = next((name for name in value if not name or set(name) & set("/\\ \t\n")), None)
        if odd is not None:
            raise UserError(f"{self.file}: {entry}: the name {odd!r} is part of file names; leave out / and blanks")
        return dict(value)

    def _fraction(self, value: Any) -> str:
        try:
            share = Fraction(str(value)).limit_denominator(10**6)
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not 0 < share <= 1:
            raise UserError(f"{self.file}: fractions: {value!r}: give shares above 0 up to 1, as '1/8'")
        return str(share)

    def all(self) -> Iterator[Cell]:
        """Yield every cell, those that make weights before those that start from them.

        Seeds are the slowest, so that a study that is not done is a whole one with fewer seeds.
        """
        cells = [
            cell for seed in self.seeds for name, task in self.tasks.items() for cell in self._task(name, task, seed)
        ]
        placed: list[Cell] = []
        for seed in self.seeds:
            own = [cell for cell in cells if cell.seed == seed]
            for source in (source for cell in own for source in _sources(cell)):
                if source not in placed:
                    placed.append(source)
                    yield source
            yield from own

    def _task(self, name: str, task: Any, seed: int) -> Iterator[Cell]:
        where = f"{self.file}: tasks.{name}"
        _only(task, TASK, where)
        kind = task.get("kind", "train")
        if kind not in ("train", "probe"):
            raise unknown_name(f"kind of {where}:", kind, ("train", "probe"))
        if not task.get("config"):
            raise UserError(f"{where}: it has no config")
        options = _options(task.get("options"), where)
        metrics = tuple(task.get("metrics") or METRICS[kind])
        recipe = task.get("recipe") or {}
        _only(recipe, RECIPE, f"{where}.recipe")
        if recipe and kind != "probe":
            raise UserError(f"{where}.recipe: only a probe has one; give the numbers of a training as options")
        odd = next((name for name, value in recipe.items() if not isinstance(value, int) or value < 1), None)
        if odd:
            raise UserError(f"{where}.recipe: {odd}={recipe[odd]!r}: give a whole number from 1")
        hooks = {NONE: []} if kind == "probe" else self._chosen(self.hooks, task, "hooks", where)
        fractions = self.fractions
        if "fractions" in task:
            fractions = [self._fraction(value) for value in task["fractions"]]
        for backbone, settings in self.backbones.items():
            for method in self._chosen(self.pretraining, task, "pretraining", where):
                for fraction in [NONE] if kind == "probe" else fractions:
                    for hook, changes in hooks.items():
                        levels = (name, backbone, method, fraction, hook, seed)
                        changed = (*options, *_options(changes, f"{self.file}: hooks.{hook}"))
                        factors = dict(zip(FACTORS, levels, strict=True))
                        yield self._cell(factors, kind, task, changed, metrics, settings)

    def _chosen(self, levels: Mapping[str, Any], task: Mapping, entry: str, where: str) -> dict[str, Any]:
        for name in task.get(entry) or ():
            if name not in levels:
                raise unknown_name(f"level of {where}.{entry}:", name, levels)
        return {name: levels[name] for name in task.get(entry) or levels}

    def _cell(
        self,
        factors: dict[str, Any],
        kind: str,
        task: Mapping,
        options: tuple[str, ...],
        metrics: tuple[str, ...],
        settings: Any,
    ) -> Cell:
        backbone, method = factors["backbone"], factors["pretraining"]
        weights, source = None, None
        given = self.pretraining[method]
        if given:
            where = f"{self.file}: pretraining.{method}"
            _only(given, PRETRAINING, where)
            if bool(given.get("weights")) == bool(given.get("config")):
                raise UserError(f"{where}: give weights (a file) or config (what makes them), one of the two")
            if given.get("weights"):
                weights = str(given["weights"]).format(backbone=backbone)
            else:
                source = self._source(backbone, method, given, settings, factors["seed"], where)
        return Cell(
            name=_name(factors),
            factors=factors,
            kind=kind,
            arch=_arch(backbone, settings),
            config=str(task["config"]).format(backbone=backbone),
            data=task.get("data"),
            options=options,
            metrics=metrics,
            weights=weights,
            source=source,
            recipe=task.get("recipe") or {},
        )

    def _source(self, backbone: str, method: str, given: Mapping, settings: Any, seed: int, where: str) -> Cell:
        seed = given.get("seed", seed)
        key = backbone, method, seed
        if key not in self.pretrained:
            teacher = self._teacher(backbone, given, settings, seed, where) if given.get("teacher") else None
            factors = dict(zip(FACTORS, (PRETRAIN, backbone, method, NONE, NONE, seed), strict=True))
            self.pretrained[key] = Cell(
                name=_name(factors),
                factors=factors,
                kind="pretrain",
                arch=_arch(backbone, settings),
                config=str(given["config"]).format(backbone=backbone),
                data=given.get("data"),
                options=_options(given.get("options"), where),
                metrics=tuple(given.get("metrics", METRICS["pretrain"])),
                source=teacher,
            )
        return self.pretrained[key]

    def _teacher(self, backbone: str, given: Mapping, settings: Any, seed: int, where: str) -> Cell:
        name = given["teacher"]
        own = {level: made for level, made in self.pretraining.items() if (made or {}).get("config")}
        if name not in own:
            raise unknown_name(f"teacher of {where}, one that the study trains:", str(name), own)
        if own[name].get("teacher"):
            raise UserError(f"{where}: its teacher {name} has a teacher itself; give one that has none")
        return self._source(backbone, name, own[name], settings, seed, f"{self.file}: pretraining.{name}")


def _sources(cell: Cell) -> list[Cell]:
    """Return the cells that have to be done before a cell, the earliest first."""
    return [*_sources(cell.source), cell.source] if cell.source else []


def _arch(backbone: str, settings: Any) -> str:
    return str((settings or {}).get("arch", backbone))


def _name(factors: Mapping[str, Any]) -> str:
    parts = [str(value).replace("/", "of") for factor, value in factors.items() if factor != "seed" and value != NONE]
    return "-".join([*parts, f"s{factors['seed']}"])


def _options(value: Any, where: str) -> tuple[str, ...]:
    options = () if value is None else value
    if not isinstance(options, list | tuple) or any(not isinstance(option, str) for option in options):
        raise UserError(f"{where}: {value!r}: give a list of 'KEY=VALUE', as --cfg-options takes them")
    return tuple(options)


def _only(part: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(part, Mapping):
        raise UserError(f"{where}: {part!r}: give dict(...) with {', '.join(known[:4])}, …")
    for key in part:
        if key not in known:
            raise unknown_name(f"entry of {where}:", key, known)
