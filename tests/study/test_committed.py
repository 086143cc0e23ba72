"""The committed studies: each page and table is what the records beside it lead to."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtransfer.study.plan import read_study
from mixtransfer.study.report import check

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.py"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_a_page_follows_from_its_records(file, monkeypatch):
    monkeypatch.chdir(file.parents[1])
    assert check(read_study(file), file.with_suffix("")) == []
