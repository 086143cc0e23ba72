"""Statements that stand in several places agree: versions, packages, paths in pages, the commands of CI."""

from __future__ import annotations

import os
import re
from distutils.core import run_setup
from pathlib import Path

import pytest
import yaml

import mixtransfer

ROOT = Path(__file__).parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
#: Beginnings of what is meant as a path of the checkout.
FOLDERS = ("mixtransfer/", "tests/", "tools/", "docs/", "configs/", "benchmarks/", "requirements/", ".github/", ".ci/")
#: Names for somebody's own: NAME.py, FILE, HEAD_BACKBONE_METHOD.py.
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}|[*<…]")


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def pinned(package: str) -> str:
    files = map(read, ("requirements/tested.txt", "requirements/lint.txt"))
    return re.search(rf"^{package}==(.+)$", "\n".join(files), re.MULTILINE)[1]


def paths_of(page: str, text: str) -> set[Path]:
    """Return what a page links to in the checkout, and the paths in its code spans."""
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    words = [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]
    named = [word.rstrip(".,:;") for word in words if word.startswith(FOLDERS)]
    return {(ROOT / page).parent / link for link in links} | {
        ROOT / word.partition("::")[0] for word in named if not PLACEHOLDER.search(word)
    }


@pytest.fixture
def distribution(monkeypatch):
    monkeypatch.chdir(ROOT)
    return run_setup("setup.py", stop_after="init")


def test_there_is_one_version(distribution):
    assert distribution.get_version() == mixtransfer.__version__
    assert yaml.safe_load(read("CITATION.cff"))["version"] == mixtransfer.__version__


def test_the_package_takes_along_what_is_no_code(distribution):
    folder = ROOT / "mixtransfer"
    taken = {
        path
        for package, patterns in distribution.package_data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    others = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert taken == {path for path in others if path.suffix != ".py"}
    assert set(distribution.packages) == {
        ".".join(path.parent.relative_to(ROOT).parts) for path in folder.rglob("__init__.py")
    }


def test_ruff_is_one_version():
    (hook,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert hook["rev"] == f"v{pinned('ruff')}"


def test_the_workflow_runs_what_must_hold():
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", read(".ci/run"), re.MULTILINE)) == {"lint", "docs", "test"} <= targets
    assert {"demo", "test"} == set(re.findall(r"^make (\w+)", read("README.md"), re.MULTILINE)) <= targets
    assert pinned("basedpyright")


def test_what_lint_names_exists():
    listed = re.search(r"\[tool.basedpyright\]\ninclude = \[(.+?)\]", read("pyproject.toml"), re.DOTALL)[1]
    paths = re.findall(r'"(.+?)"', listed)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_templates_of_issues_are_complete():
    templates = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert templates
    for path in templates:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= content.keys()
        ids = [field["id"] for field in content["body"]]
        assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in content["body"])


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_paths_in_pages_exist(page):
    assert sorted(str(path) for path in paths_of(page, read(page)) if not path.exists()) == []


def test_the_changelog_sends_nobody_to_what_is_gone():
    """The left column is of former names, the right one of present ones."""
    lines = [line for line in read("CHANGELOG.md").splitlines() if not line.startswith("|")]
    rows = re.findall(r"^\|(.+)\|(.+)\|$", read("CHANGELOG.md"), re.MULTILINE)
    now = "\n".join([*lines, *(row[1] for row in rows)])
    assert len(rows) > 20
    assert sorted(str(path) for path in paths_of("CHANGELOG.md", now) if not path.exists()) == []
    assert re.search(r"^## \[Unreleased\]$", now, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    named = re.findall(r"(?:^|`)make (\w+)", read(page), re.MULTILINE)
    assert set(named) <= targets


def test_a_path_that_is_gone_is_found():
    text = "[a](gone.md), `docs/gone.md`, `python tools/gone.py FILE`, `mixtransfer/NAME.py`, [b](https://c.d)"
    found = {str(path.relative_to(ROOT)) for path in paths_of("README.md", text)}
    assert found == {"gone.md", "docs/gone.md", "tools/gone.py"}
