"""A hook of mkdocs: pages link to files of the checkout, and the site has a page for each of these.

Links in ``docs/`` are those of the checkout, as a reader of the files follows them. Markdown outside of ``docs/`` comes
into the site as it is, a folder as a list of its files, any other file as a listing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

__all__ = ["on_files", "on_page_markdown"]

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\[\]]*(?:\[[^\]]*\][^\[\]]*)*\]\()(?!\w+:|#|/)([^)#\s]+)((?:#[^)\s]*)?\))")
#: Markdown of the checkout -> its page in the site; the README's place is taken by the site's own first page.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "configs/README.md": "configs/README.md",
    "README.md": "index.md",
    "docs/notebook.ipynb": "notebook.md",
}
LANGUAGES = {".py": "python", ".yml": "yaml", ".json": "json", ".toml": "toml", ".txt": "text"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file of the checkout that a page links to, however far."""
    for origin, page in PAGES.items():
        if not files.get_file_from_path(page):
            files.append(File.generated(config, page, content=_content(ROOT / origin)))
    todo = [file.src_uri for file in files.documentation_pages()]
    while todo:
        page = todo.pop()
        file = files.get_file_from_path(page)
        for target in _targets(file.content_string, _origin(page)):
            place = _place(target)
            if not files.get_file_from_path(place):
                files.append(File.generated(config, place, content=_listing(target)))
                todo.append(place)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return the text with its links to the checkout turned into links to the site's pages."""
    here = page.file.src_uri

    def turned(target: str) -> str:
        return os.path.relpath(_place(target), PurePosixPath(here).parent)

    return _replaced(markdown, _origin(here), turned)


def _content(path: Path) -> str:
    """Return a file as Markdown: as it is, or a notebook's cells with their outputs."""
    if path.suffix != ".ipynb":
        return path.read_text("utf-8")
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {})
            if "image/png" in shown:
                parts.append(f"![output](data:image/png;base64,{''.join(shown['image/png']).strip()})")
            else:
                printed = "".join(output.get("text", shown.get("text/plain", "")))
                parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join([*parts, ""])


def _targets(markdown: str, origin: str) -> list[str]:
    found: list[str] = []

    def noted(target: str) -> str:
        found.append(target)
        return target

    _replaced(markdown, origin, noted)
    return found


def _replaced(markdown: str, origin: str, turned: Callable[[str], str]) -> str:
    """Replace the links outside of code; ``turned`` takes a path from the checkout's root."""

    def link(match: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(origin).parent / match[2])
        if not (ROOT / target).exists():
            # Links of listings of the site itself, and those that mkdocs is to refuse.
            return match[0]
        return f"{match[1]}{turned(target)}{match[3]}"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else LINK.sub(link, part) for number, part in enumerate(parts))


def _origin(page: str) -> str:
    """Return the file of the checkout that a page of the site shows."""
    if page.startswith("source/"):
        return page.removeprefix("source/")
    return next((origin for origin, shown in PAGES.items() if shown == page != "index.md"), f"docs/{page}")


def _place(target: str) -> str:
    """Return the page of the site that shows a file of the checkout."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/") and (ROOT / target).suffix not in (".py", ".json"):
        return target.removeprefix("docs/")
    if (ROOT / target).is_dir():
        return f"source/{target}/index.md"
    return f"source/{target}" if target.endswith(".md") else f"source/{target}.md"


def _listing(target: str) -> str:
    path = ROOT / target
    if path.suffix == ".md":
        return path.read_text("utf-8")
    front = f"---\ntitle: {path.name}\nsearch:\n  exclude: true\n---\n\n# `{target}`\n\n"
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(("_", ".")))
        return front + "\n".join(f"- `{name}`" for name in names) + "\n"
    if path.suffix not in LANGUAGES and path.name not in ("Makefile", "LICENSE"):
        raise PluginError(f"{target}: is linked to, and the site shows no such files; add its ending to LANGUAGES")
    return f"{front}````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text('utf-8')}\n````\n"
