"""Writing a study's results, and checking that what is written follows from the records."""

from __future__ import annotations

from pathlib import Path

from mixtransfer.engine.config import make_folder
from mixtransfer.errors import UserError
from mixtransfer.study.page import page
from mixtransfer.study.pictures import draw_predictions
from mixtransfer.study.plan import Study
from mixtransfer.study.results import RECORDS, TABLE, Results, collect, csv_of, read_results, write_results
from mixtransfer.study.tables import latex, markdown, summary_csv

__all__ = ["check", "write"]


def write(study: Study, out: Path) -> int:
    """Write records, tables and page into a folder; return how many cells have no result yet.

    Where no cell has been run, as in a checkout of somebody else's study, the records that are there are taken.

    Raises:
        UserError: there is no record, or the folder cannot be written to.
    """
    texts = collect(study)
    if texts[RECORDS]:
        make_folder(out, "--out")
        write_results(out, texts)
        draw_predictions(study, out)
    elif not (out / RECORDS).is_file():
        raise UserError(f"{study.file}: no cell is done; run it first: mixtransfer study {study.file} run")
    results = read_results(study, out)
    write_results(out, _derived(results, out))
    return len(results.missing)


def check(study: Study, out: Path) -> list[str]:
    """Return the files in a folder that are not what its records lead to.

    Raises:
        UserError: there are no records.
    """
    derived = _derived(read_results(study, out), out)
    return [name for name, text in derived.items() if not (out / name).is_file() or _text(out / name) != text]


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def _derived(results: Results, out: Path) -> dict[str, str]:
    if not results.records:
        raise UserError(f"{out / RECORDS}: holds no cell of {results.study.file}; run the study first")
    return {
        TABLE: csv_of(list(results.records.values())),
        "table.md": markdown(results),
        "table.csv": summary_csv(results),
        "table.tex": latex(results),
        "index.html": page(results, out),
    }
