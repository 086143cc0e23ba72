"""Every parity record is read by a test; a record of a new kind fails here until one reads it."""

from pathlib import Path

import pytest
from parity_records import READERS, kind_of, record, records


@pytest.mark.parametrize(("system", "name"), records())
def test_a_test_reads_the_record(system, name):
    kind = kind_of(record(system, name))
    assert kind in READERS, f"{system}/{name}.json: no test reads records of the kind {kind!r}"


@pytest.mark.parametrize("kind", READERS)
def test_the_reader_of_a_kind_collects_its_records(kind):
    assert f'records("{kind}"' in (Path(__file__).parent / READERS[kind]).read_text(encoding="utf-8")
    assert records(kind)
