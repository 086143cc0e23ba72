"""The notebook runs from its first cell to its last, and its outputs are those of a run, and small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/notebook.ipynb"
#: Bytes of the file: who reads the repository fetches its pictures too.
MOST = 300_000


def cells() -> list[dict]:
    return [cell for cell in json.loads(PAGE.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_every_cell_was_run_in_order_without_an_error():
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert PAGE.stat().st_size < MOST


def test_the_outputs_name_no_folder_of_a_machine():
    assert not [line for line in PAGE.read_text("utf-8").splitlines() if "/tmp/" in line or "/home/" in line]


@pytest.mark.long
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, cell in enumerate(cells(), 1):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    answer = names["answer"]
    assert answer.labels.shape == (128, 128) and answer.classes == tuple(names["CLASSES"])
    assert len(list(Path("predictions/masks").rglob("*.png"))) == 4 and Path("run/iter_120.pt").is_file()
