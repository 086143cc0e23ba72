"""The page that chooses a network has no row that another one beats, and every variant with a score is counted."""

from __future__ import annotations

import json
from pathlib import Path

import chooser
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def complexity():
    return json.loads((DOCS / "zoo.json").read_text("utf-8"))["complexity"]


@pytest.mark.parametrize("job", chooser.JOBS, ids=lambda job: job.title)
def test_no_row_is_beaten(job, complexity):
    found = chooser.choices(job, complexity)
    rows = chooser.front(found)
    assert rows and len({choice.arch for choice in found}) == len(found)
    for choice in found:
        beaten = [other for other in found if other.work <= choice.work and other.score > choice.score]
        assert (choice in rows) == (not beaten and choice == next(o for o in found if o.score == choice.score))


def test_scores_of_more_data_or_teachers_are_left_out(complexity):
    archs = {choice.arch for choice in chooser.choices(chooser.JOBS[0], complexity)}
    assert "swin_tiny" in archs and "vit_base_384" not in archs and not any("istill" in arch for arch in archs)
