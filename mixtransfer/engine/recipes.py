"""The configs that come with the package: where they lie, which one a name means, and what each is for.

Everything here is read from the files' text; no config is run. A docstring begins with ``MODEL, DATA, SCHEDULE.`` and
holds ``Recipe: …`` and, where something is published, ``Published: 46.0 box AP, 41.6 mask AP, 48 M parameters, 267 G
MACs (SOURCE).``, in which *there* is the repository that the recipe names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixtransfer.errors import UserError, unknown_name

__all__ = ["CONFIGS", "SCORES", "Recipe", "describe", "find_config", "list_recipes", "recipe_files"]

PACKAGE = Path(__file__).parents[1]
#: The folder of the configs: inside an installed package, or beside the package in a checkout.
CONFIGS = next(path for path in (PACKAGE / ".mim/configs", PACKAGE.parent / "configs") if path.is_dir())
KINDS = {"pretrain": "classification", "finetune": "classification", "seg": "segmentation", "det": "detection"}
#: Scores and costs as docstrings name them.
SCORES = ("top-1", "box AP", "mask AP", "mIoU")
COSTS = {"parameters": "M parameters", "MACs": "G MACs"}
#: Beginnings of the part of a title that names the data.
DATASETS = ("ImageNet-1k", "COCO", "ADE20K", "Cityscapes", "CamVid", "nuts")
#: A repository, owner/name, and a paper.
REPOSITORY, PAPER = re.compile(r"\b[A-Za-z][\w-]*/[A-Za-z][\w.-]*\w"), re.compile(r"arXiv \d{4}\.\d{5}")
UNCONFIRMED = ("not confirmed here", "from memory", "cited by others")


@dataclass(frozen=True)
class Recipe:
    """Purpose and published scores of a config.

    Attributes:
        name: the file's name without its suffix, by which commands take it.
        task: "classification", "segmentation" or "detection".
        arch: the backbone's architecture.
        schedule: how long it trains, e.g. "160k iterations"; empty where only a library's base says it.
        published: scores that the paper prints for it; empty where it prints none.
        title: one line of text.
        model: the part of the title before the data.
        data: the part of the title that names the data.
        source: where the scores are printed.
        scores: published scores by the names in :data:`SCORES`.
        costs: published ``parameters`` in millions and ``MACs`` in units of 10⁹.
        reproduced: whether we have reached the scores.
    """

    name: str
    task: str
    arch: str
    schedule: str
    published: str
    title: str
    model: str
    data: str
    source: str
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    reproduced: bool

    @property
    def confirmed(self) -> bool:
        """Whether the scores were read where they are printed."""
        return not any(word in self.source for word in UNCONFIRMED)


def recipe_files() -> list[Path]:
    """Return the configs that can be trained, sorted; bases of others are none."""
    return sorted(path for folder in KINDS for path in (CONFIGS / folder).rglob("*.py"))


def find_config(name: str | Path) -> Path:
    """Return the file of a config: a path, or the name of one that comes with the package.

    ``upernet_swin``, ``seg/upernet_swin``, ``upernet_swin.py`` and ``configs/seg/upernet_swin.py`` are the same one.

    Raises:
        UserError: no such config, with the near names.
    """
    path = Path(name)
    if path.is_file():
        return path
    wanted = path.with_suffix("") if path.suffix == ".py" else path
    parts = wanted.parts[1:] if wanted.parts[:1] == (CONFIGS.name,) else wanted.parts
    for file in recipe_files():
        known = file.relative_to(CONFIGS).with_suffix("").parts
        if parts and known[-len(parts) :] == parts:
            return file
    files = [file.relative_to(CONFIGS).as_posix() for file in recipe_files()]
    # A path is answered with paths.
    known = [f"configs/{file}" for file in files] if len(path.parts) > 1 else [Path(file).stem for file in files]
    raise unknown_name("config", str(name), known)


def list_recipes(word: str = "") -> list[Recipe]:
    """Return the configs that have ``word`` in what is said of them, all by default."""
    recipes = [describe(path) for path in recipe_files()]
    shown = ("name", "task", "arch", "schedule", "published", "title")
    return [recipe for recipe in recipes if word.lower() in " ".join(getattr(recipe, key) for key in shown).lower()]


def describe(path: Path) -> Recipe:
    """Read what a config's docstring and text say of it.

    Raises:
        UserError: a score is printed "there", and the docstring names no place.
    """
    text = _text(path)
    sentence = re.search(r"Published: (.+?) \(([^()]*)\)(?=[.,;]| with)", text)
    claim, source = (sentence[1], sentence[2]) if sentence else ("", "")
    if source.startswith("there"):
        start = text.partition("Recipe: ")[2].partition("Published: ")[0]
        place = REPOSITORY.search(start) or PAPER.search(start)
        if place is None:
            raise UserError(f"{path}: 'there' names no place; let the sentence 'Recipe: …' name a repository")
        source = source.replace("there", place[0], 1)
    scores = {name: match for name in SCORES if (match := _number(claim, name))}
    title = re.match(r".+?\.(?= |$)", text)
    lengths = (_length(value, unit) for unit in ("max_iters", "max_epochs") for value in _values(path, unit))
    # Bases of libraries are not read; ours say what they hold.
    stated = (match[0] for file in _chain(path) if (match := re.search(r"\d+k? (epochs|iterations)", _text(file))))
    title = title[0].rstrip(".") if title else ""
    parts = re.split(r"[,:] ", title)
    number = next((number for number, part in enumerate(parts) if part.startswith(DATASETS)), len(parts))
    return Recipe(
        name=path.stem,
        task=next((task for kind, task in KINDS.items() if kind in path.parts), ""),
        arch=str(next(_values(path, "arch"), "")),
        schedule=next(lengths, next(stated, "")),
        published=", ".join(match[0] for match in scores.values()),
        title=title,
        model=", ".join(parts[:number]),
        data=parts[number] if number < len(parts) else "",
        source=source,
        scores={name: float(match[1]) for name, match in scores.items()},
        costs={name: float(match[1]) for name, unit in COSTS.items() if (match := _number(claim, unit))},
        reproduced=bool(sentence) and "Not reproduced yet." not in text,
    )


def _number(text: str, unit: str) -> re.Match | None:
    """Return the first number of a unit in a text."""
    return re.search(rf"(\d+(?:\.\d+)?) {re.escape(unit)}\b", text)


def _text(path: Path) -> str:
    return " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())


def _length(count: object, unit: str) -> str:
    if unit == "max_epochs":
        return f"{count} epochs"
    return f"{count // 1000}k iterations" if isinstance(count, int) and count >= 10_000 else f"{count} iterations"


def _chain(path: Path) -> Iterator[Path]:
    """Yield a config and the bases that lie beside it, each before its own."""
    yield path
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "_base_":
            bases = ast.literal_eval(statement.value)
            for base in [bases] if isinstance(bases, str) else bases:
                if "::" not in base:
                    yield from _chain((path.parent / base).resolve())


def _values(path: Path, keyword: str) -> Iterator[object]:
    """Yield the values of a keyword in a config and, after them, in its bases."""
    for file in _chain(path):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {
            statement.targets[0].id: statement.value
            for statement in tree.body
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == keyword:
                value = names.get(node.value.id, node.value) if isinstance(node.value, ast.Name) else node.value
                if isinstance(value, ast.Constant):
                    yield value.value
