"""The compatibility page says what its record says, and a row is made by running a config, in a process of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import make_compatibility as made
import pytest

from mixtransfer.cli import run_main
from mixtransfer.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"
RECORD = json.loads((DOCS / "compatibility.json").read_text())


def run(argv):
    return run_main("make_compatibility", made.parser(), made.run, argv)


def test_the_page_is_up_to_date_and_nearly_all_configs_pass():
    assert run(["--check"]) == 0
    rows = RECORD["rows"]
    assert len(rows) > 150
    able = [row for row in rows.values() if (row["failed"] or {}).get("kind") != "package"]
    passed = [row for row in able if row["passed"] == list(made.STEPS)]
    assert len(passed) >= 0.95 * len(able)
    # What fails says why, and no op is missing.
    assert all((row["failed"] is None) == (row["passed"] == list(made.STEPS)) for row in rows.values())
    assert [name for name, row in rows.items() if (row["failed"] or {}).get("kind") == "op"] == []


def test_a_page_that_is_not_up_to_date_is_told(tmp_path, capsys):
    (tmp_path / "compatibility.json").write_text(json.dumps(RECORD))
    assert run(["--check", "--folder", str(tmp_path)]) == 1
    assert "is not up to date" in capsys.readouterr().out


def test_unknown_rows_are_refused(tmp_path, capsys):
    assert run(["--again", "mmdet/nothing", "--folder", str(tmp_path)]) == 2
    assert "--again mmdet/nothing: no such row" in capsys.readouterr().err


def test_a_row_is_a_config_that_was_run():
    rows = []
    row = made.check(rows.append, "mmseg/fastscnn", made.chosen()["mmseg/fastscnn"])
    assert row["passed"] == list(made.STEPS) and row["failed"] is None
    assert row["config"] == RECORD["rows"]["mmseg/fastscnn"]["config"]
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'lap'"), {"kind": "package", "reason": "lap"}),
        (RuntimeError("albumentations is not installed"), {"kind": "package", "reason": "albumentations"}),
        (UserError("the op 'nms_rotated' is missing, since"), {"kind": "op", "reason": "nms_rotated"}),
        (ValueError("first\nsecond"), {"kind": "error", "reason": "ValueError: first"}),
    ],
)
def test_reasons(error, reason):
    assert made._reason(error) == reason


def crash(report, path):
    report({"config": path.stem, "passed": ["builds"], "ops": [], "failed": None})
    os._exit(7)


def test_a_crash_costs_a_row_only():
    row = made._in_a_fork(crash, Path("some_config.py"))
    assert row["passed"] == ["builds"]
    assert row["failed"] == {"kind": "error", "reason": "the process ended with status 7"}
