"""The configs that come with the package: where they lie, which one a name means, and what each is for.

Everything here is read from the files' text; no config is run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixtransfer.errors import unknown_name

__all__ = ["CONFIGS", "Recipe", "find_config", "list_recipes", "recipe_files"]

PACKAGE = Path(__file__).parents[1]
#: The folder of the configs: inside an installed package, or beside the package in a checkout.
CONFIGS = next(path for path in (PACKAGE / ".mim/configs", PACKAGE.parent / "configs") if path.is_dir())
KINDS = {"pretrain": "classification", "finetune": "classification", "seg": "segmentation", "det": "detection"}


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
    """

    name: str
    task: str
    arch: str
    schedule: str
    published: str
    title: str


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
    recipes = [_describe(path) for path in recipe_files()]
    return [recipe for recipe in recipes if word.lower() in " ".join(vars(recipe).values()).lower()]


def _describe(path: Path) -> Recipe:
    text = _text(path)
    published = re.search(r"Published: (.+?)(?: \(| with |, without |; |\. |$)", text)
    title = re.match(r".+?\.(?= |$)", text)
    lengths = (_length(value, unit) for unit in ("max_iters", "max_epochs") for value in _values(path, unit))
    # Bases of libraries are not read; ours say what they hold.
    stated = (match[0] for file in _chain(path) if (match := re.search(r"\d+k? (epochs|iterations)", _text(file))))
    return Recipe(
        name=path.stem,
        task=KINDS[path.relative_to(CONFIGS).parts[0]],
        arch=str(next(_values(path, "arch"), "")),
        schedule=next(lengths, next(stated, "")),
        published=published[1] if published else "",
        title=title[0].rstrip(".") if title else "",
    )


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
