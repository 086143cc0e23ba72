"""Every parity record is read by a test; a record of a new kind fails here until one reads it."""

import json
from pathlib import Path

import parity_records
import pytest
import torch
from parity_records import READERS, assert_matches, kind_of, record, records


@pytest.mark.parametrize(("system", "name"), records())
def test_a_test_reads_the_record(system, name):
    kind = kind_of(record(system, name))
    assert kind in READERS, f"{system}/{name}.json: no test reads records of the kind {kind!r}"


@pytest.mark.parametrize("kind", READERS)
def test_the_reader_of_a_kind_collects_its_records(kind):
    assert f'records("{kind}"' in (Path(__file__).parent / READERS[kind]).read_text(encoding="utf-8")
    assert records(kind)


def test_a_record_widens_the_tolerance_of_its_outputs(tmp_path, monkeypatch):
    """The published code's own float32 error, fourfold, and a stated tolerance, for numbers of that type alone."""
    output = {"shape": [2], "mean": 0.0, "std": 1.0, "values": [-1.0, 1.0]}
    stated = {
        "outputs": {"logits": output, "features": output},
        "float32_max_deviation_over_std": {"logits": 1e-3},
        "tolerance": {"float64": 1e-2},
    }
    (tmp_path / "swin").mkdir()
    (tmp_path / "swin" / "stated.json").write_text(json.dumps(stated))
    monkeypatch.setattr(parity_records, "FOLDER", tmp_path)
    outputs = record("swin", "stated")["outputs"]
    off = torch.tensor([-1.0, 1.003])
    assert_matches(off, outputs["logits"], 1e-4)
    assert_matches(off.double(), outputs["features"], 1e-6)
    with pytest.raises(AssertionError, match="allowed 1e-04"):
        assert_matches(off, outputs["features"], 1e-4)
    with pytest.raises(AssertionError, match="allowed 4e-03"):
        assert_matches(torch.tensor([-1.0, 1.005]), outputs["logits"], 1e-4)
