"""The house keeps its plan: imports run downwards, rooms stay small, nothing is written twice.

docs/design.md draws the floors. Everything here is read from the source; nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Rooms, from the ground up; ``mixtransfer`` is the package's own ``__init__``.
FLOORS = (
    ("mixtransfer", "errors", "progress", "on_import"),
    ("registry", "compat"),
    ("layers",),
    ("backbones", "mixing", "datasets"),
    ("checkpoints",),
    ("engine",),
    ("transfer", "pretrain", "inference"),
    ("zoo", "visualization", "evaluation"),
    ("study", "demo"),
    ("cli",),
    ("__main__",),
    ("tools", "benchmarks", "docs"),
)
#: Rooms that know nothing of each other, although they share a floor: they meet in the backbone contract.
APART = {"backbones", "mixing", "datasets"}
#: Folders with modules of the house; the first is the package.
FOLDERS = ("mixtransfer", "tools", "benchmarks", "docs")
#: Functions that import the module that a string names.
BY_NAME = {"import_module", "import_quietly"}
MAX_FILE, MAX_SWIN, MAX_BACKBONES = 470, 330, 7_600
#: The redesigned house had 20,982 lines (baa3a9a). Guarded data, runs and files, ops, heads, protocols, studies and
#: predictions came to it since, readers of other tools' datasets (1,100 lines), costs and throughput of whole models
#: and robustness of segmentors and detectors (1,000 lines), faster steps (losses in bands, mixing in the loader: 500
#: lines), maps that accompany images, sheets about mixing and distillation (1,000 lines), FAN-Swin and FAN-XL (100
#: lines), teachers in studies and AP of images drawn again (200 lines); who moves the bound says what for.
#: Progress on the console, short schedules, sizes of images (400 lines).
#: Networks of timm and transformers, and weights by name with their index, came to it (1,400 lines).
#: Input of users and checkpoints that is refused in one line: 100 lines.
MAX_PACKAGE = 41_500
EQUAL_LINES = 12


def module_files(root: Path) -> dict[str, Path]:
    """Return the dotted name of every module of the house with its file."""
    names = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(tree: ast.AST, name: str, is_package: bool) -> Iterator[tuple[int, str, str | None]]:
    """Yield the line, the module and, of ``from`` imports, the name of every import at any level of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if is_package else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if function in BY_NAME:
                yield node.lineno, node.args[0].value, None


def import_graph(root: Path) -> dict[str, dict[str, int]]:
    """Return the modules of the house that each of them imports, with the line of the first import."""
    files = module_files(root)
    graph: dict[str, dict[str, int]] = {name: {} for name in files}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, module, member in imports(tree, name, path.name == "__init__.py"):
            target = f"{module}.{member}" if f"{module}.{member}" in files else module
            if target in files:
                graph[name].setdefault(target, line)
    return graph


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "mixtransfer" and len(parts) > 1 else parts[0]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other, a node that reaches itself included."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph[node]
        reach[start] = seen
    groups = {tuple(sorted(other for other in reach[node] if node in reach[other])) for node in graph}
    return [list(group) for group in sorted(groups) if group]


def climbing(graph: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        f"{module}:{line} imports {target}"
        for module, targets in graph.items()
        for target, line in targets.items()
        if floor(target) > floor(module)
    ]


def significant_lines(text: str) -> list[tuple[int, str]]:
    """Return number and text of every line of code or prose: no blank, comment, import or lone punctuation."""
    skipped = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in skipped)
    return [(number, line) for number, line in stripped if line[:1] != "#" and any(map(str.isalnum, line))]


def equal_passages(files: Mapping[str, str], length: int = EQUAL_LINES) -> list[str]:
    """Return the places where two passages of ``length`` significant lines are equal, the first of each run."""
    lines = {name: significant_lines(text) for name, text in files.items()}
    places = defaultdict(list)
    for name, code in lines.items():
        for start in range(len(code) - length + 1):
            places[tuple(line for _, line in code[start : start + length])].append((name, start))
    pairs = {
        (first, second)
        for found in places.values()
        for number, first in enumerate(found)
        for second in found[number + 1 :]
        if first[0] != second[0] or second[1] - first[1] >= length
    }
    return [
        f"{first[0]}:{lines[first[0]][first[1]][0]} and {second[0]}:{lines[second[0]][second[1]][0]}"
        for first, second in sorted(pairs)
        if ((first[0], first[1] - 1), (second[0], second[1] - 1)) not in pairs
    ]


def package_sources() -> dict[str, str]:
    files = sorted((ROOT / "mixtransfer").rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


@pytest.fixture(scope="module")
def graph():
    return import_graph(ROOT)


@pytest.fixture(scope="module")
def line_counts():
    return {name: text.count("\n") for name, text in package_sources().items()}


def test_every_room_is_on_one_floor(graph):
    rooms = [name for rooms in FLOORS for name in rooms]
    assert len(rooms) == len(set(rooms))
    assert sorted({room(module) for module in graph} - set(rooms)) == []


def test_no_import_climbs(graph):
    assert climbing(graph) == []


def test_no_modules_import_each_other(graph):
    assert circles(graph) == []


def test_rooms_do_not_import_each_other(graph):
    rooms = defaultdict(set)
    for module, targets in graph.items():
        rooms[room(module)] |= {room(target) for target in targets} - {room(module)}
    assert circles({name: rooms[name] for name in [*rooms]}) == []
    assert {name: sorted(rooms[name] & APART) for name in APART if rooms[name] & APART} == {}


def test_no_file_is_too_long(line_counts):
    assert {name: count for name, count in line_counts.items() if count > MAX_FILE} == {}


def test_the_file_of_swin_is_short(line_counts):
    assert line_counts["mixtransfer/backbones/swin.py"] <= MAX_SWIN


def test_the_families_are_short_together(line_counts):
    files = [count for name, count in line_counts.items() if Path(name).parent == Path("mixtransfer/backbones")]
    assert sum(files) <= MAX_BACKBONES


def test_the_package_is_short(line_counts):
    assert sum(line_counts.values()) < MAX_PACKAGE


def test_nothing_is_written_twice():
    assert equal_passages(package_sources()) == []


@pytest.mark.parametrize(
    "code",
    [
        "from mixtransfer.cli import train",
        "from mixtransfer import cli",
        "import mixtransfer.cli.train",
        "from ..cli import train",
        "def f():\n    from mixtransfer.cli.train import run",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mixtransfer.cli.train import run",
        "import importlib\nimportlib.import_module('mixtransfer.cli.train')",
    ],
)
def test_a_climbing_import_is_found_in_every_form(code, tmp_path):
    files = {
        "__init__.py": "",
        "layers/__init__.py": "",
        "layers/a.py": code,
        "cli/__init__.py": "",
        "cli/train.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "mixtransfer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    [found] = climbing(import_graph(tmp_path))
    assert found.startswith(f"mixtransfer.layers.a:{len(code.splitlines())} imports mixtransfer.cli")


def test_circles_are_found_whatever_their_length():
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"], "e": ["e"]}) == [["a", "b", "c"], ["e"]]


def test_equal_passages_are_found_between_files_and_within_one():
    passage = [f"x{number} = {number}" for number in range(5)]
    spaced = "# other words\n\nimport os\n" + "\n\n".join(passage[:2]) + "\n# between\n" + "\n".join(passage[2:])
    files = {"a": "\n".join(passage), "b": spaced, "c": "\n".join([*passage, "y = 0", *passage])}
    assert equal_passages(files, length=5) == [
        "a:1 and b:4", "a:1 and c:1", "a:1 and c:7", "b:4 and c:1", "b:4 and c:7", "c:1 and c:7"
    ]  # fmt: skip
    assert equal_passages(files, length=6) == []


def test_contributors_find_the_floors_as_they_are():
    rows = re.findall(r"^\| \d+ \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == [set(rooms) - {"mixtransfer"} for rooms in FLOORS]


def test_docstrings_name_the_thing_first():
    """A summary that opens with "What" or "How" makes its reader wait for the noun."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    late = []
    for path in sorted((ROOT / "mixtransfer").rglob("*.py")):
        nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, kinds)]
        openings = [(ast.get_docstring(node) or "").partition("\n")[0] for node in nodes]
        late += [
            f"{path.relative_to(ROOT)}: {line}" for line in openings if line.startswith(("What ", "Where ", "How "))
        ]
    assert not late
