"""The papers' official files: where their authors' pages say that they are.

``weights.json`` beside this file has a row a file. Every address was read in the page that ``source`` names; files
whose address we have not read there are left out. None was downloaded for the index, so it has no hashes of its own.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from mixtransfer.errors import UserError, unknown_name

__all__ = ["WEIGHTS", "Published", "find_published", "list_published"]

WEIGHTS = Path(__file__).with_name("weights.json")
#: Where a page stands in the place of the file: only a browser gets past it.
PAGES = ("https://drive.google.com/",)


@dataclass(frozen=True)
class Published:
    """One file of a paper's authors.

    Attributes:
        name: ours, which ``weights://NAME`` takes.
        arch: the architecture of the backbone.
        names: the format of its entries' names, as ``convert --from`` says it.
        task: "classification", "segmentation" or "detection".
        score: the score that its source prints beside it; empty where it prints none.
        address: the address.
        source: the repository and the page in it.
    """

    name: str
    arch: str
    names: str
    task: str
    score: str
    address: str
    source: str

    @property
    def is_page(self) -> bool:
        """Whether the address is that of a page on which a person downloads the file."""
        return self.address.startswith(PAGES)


def list_published(word: str = "") -> list[Published]:
    """Return the files that have ``word`` in their row, all by default."""
    return [entry for entry in _index().values() if word.lower() in " ".join(astuple(entry)).lower()]


def find_published(name: str) -> Published:
    """Return the file of a name.

    Raises:
        UserError: there is none, with the near names.
    """
    if name not in _index():
        known = unknown_name("file of the papers", name, _index())
        raise UserError(f"{known}; 'mixtransfer weights' lists them")
    return _index()[name]


@cache
def _index() -> dict[str, Published]:
    rows = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    return {row["name"]: Published(**row) for row in rows}
