"""The zoo page says what the tables, counts and reports say, is up to date, and has no cell that nothing fills."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import make_zoo as zoo
import pytest
import torch

from benchmarks.speed import Result
from mixtransfer.backbones import FAMILIES
from mixtransfer.cli import run_main
from mixtransfer.errors import UserError
from mixtransfer.evaluation.complexity import complexity
from mixtransfer.evaluation.environment import environment

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"


def run_zoo(argv: list[str]) -> int:
    return run_main("make_zoo", zoo.parser(), zoo.run, argv)


def stored() -> dict:
    return json.loads((DOCS / "zoo.json").read_text())


def report(path: Path, cases: dict[str, str]) -> Path:
    """Write a report of pytest: test id to "passed", "failed" or "skipped"."""
    tags = {"passed": "", "failed": "<failure/>", "skipped": "<skipped/>"}
    lines = []
    for identity, outcome in cases.items():
        module, name = identity.split("::")
        lines.append(f'<testcase classname="tests.{module}" name={quoteattr(name)}>{tags[outcome]}</testcase>')
    path.write_text(f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>")
    return path


@pytest.mark.parametrize(
    ("measured", "printed", "expected"),
    [
        (22.41, 22, None),  # 1.9 %, but it rounds to 22
        (28.4, 28.0, 0.0143),
        (22.51, 22, 0.0232),
        (87.1, 86.5, None),  # 0.7 %
        (3.7, 3.5, 0.0571),
    ],
)
def test_a_deviation_is_more_than_a_percent_and_than_rounding(measured, printed, expected):
    assert zoo.deviation(measured, printed) == (expected and pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("cls", FAMILIES, ids=lambda cls: cls.family)
def test_published_numbers_are_of_our_variants_and_have_a_source(cls):
    assert cls.reported.keys() <= cls.archs.keys()
    for row in cls.reported.values():
        assert row.sources
        # Percents and sizes swapped in a row of bare numbers would land outside of these.
        assert row.top1 is None or 70 < row.top1 < 90
        assert row.box_ap is None or 35 < row.box_ap < 60
        assert row.mask_ap is None or 30 < row.mask_ap < row.box_ap
        assert row.miou is None or 30 < row.miou < 60


def test_the_page_is_up_to_date():
    assert run_zoo(["--check", "--folder", str(DOCS)]) == 0


def test_every_reason_explains_a_deviation():
    """One that outlives what it explained would be printed beside nothing; the converse stops the page itself."""
    counts = stored()["complexity"]
    for arch, row in ((arch, row) for cls in FAMILIES for arch, row in cls.reported.items() if row.reason):
        pairs = ((counts[arch]["parameters"] / 1e6, row.params), (counts[arch]["macs"] / 1e9, row.flops))
        assert any(printed is not None and zoo.deviation(value, printed) for value, printed in pairs), arch


@pytest.mark.parametrize("arch", ["swin_tiny", "vit_tiny", "hornet_tiny_gf", "sequencer2d_s", "sret_tiny"])
def test_stored_counts_are_those_of_today(arch):
    count = complexity(arch)
    assert stored()["complexity"][arch] == {
        "size": list(count.size),
        "parameters": count.parameters,
        "macs": count.macs,
    }


def test_check_notices_an_edit_and_writes_nothing(tmp_path, capsys):
    for name in ("zoo.json", "zoo.md"):
        shutil.copy(DOCS / name, tmp_path)
    page = tmp_path / "zoo.md"
    page.write_text(page.read_text().replace("81.2", "82.1"))
    edited = page.read_bytes()
    assert run_zoo(["--check", "--folder", str(tmp_path)]) == 1
    assert "zoo.md is not up to date; run docs/make_zoo.py" in capsys.readouterr().out
    assert page.read_bytes() == edited
    assert run_zoo(["--folder", str(tmp_path)]) == 0
    assert page.read_bytes() == (DOCS / "zoo.md").read_bytes()
    assert (tmp_path / "zoo.json").read_bytes() == (DOCS / "zoo.json").read_bytes()


def test_a_published_number_off_ours_needs_a_reason():
    record = stored()
    record["complexity"]["swin_tiny"]["macs"] *= 2
    with pytest.raises(UserError, match=r"swin_tiny: 8\.98 G MACs against 4\.5 published; state the reason"):
        zoo.page(record)


def test_a_variant_without_a_count_stops_the_page():
    record = stored()
    del record["complexity"]["swin_tiny"]
    with pytest.raises(UserError, match=r"swin_tiny is not counted; run docs/make_zoo\.py"):
        zoo.page(record)


def test_reports_of_pytest_fill_cells(tmp_path):
    cells, formats = zoo.read_junit(
        report(
            tmp_path / "junit.xml",
            {
                # Two precisions of one record, and one that was not run.
                "test_parity::test_classifier_equals_published[swin-swin_tiny_classify-f64]": "passed",
                "test_parity::test_classifier_equals_published[swin-swin_tiny_classify-f32]": "passed",
                "test_parity::test_classifier_equals_published[swin-swin_small_classify-f32]": "skipped",
                # Both names hold others: of the family deit, and of swin.
                "test_parity::test_dense_maps_equal_published[regionvit-regionvit_tiny_dense-f64]": "passed",
                "test_parity::test_dense_maps_equal_published[swin_mlp-swin_mlp_base_w7_224_dense-f64]": "passed",
                "test_contract::test_declared_channels[64-64-fan/vit]": "passed",
                "test_contract::test_labels_are_linear_in_the_map[fan]": "passed",
                "test_convert::test_a_format_goes_there_and_back_with_the_same_bytes[pvt_v2-timm]": "passed",
                "test_convert::test_equals_the_librarys_network_both_ways[pvt_v2-timm-classifier]": "passed",
                "test_convert::test_equals_the_librarys_network_both_ways[pvt_v2-timm-dense]": "skipped",
                "test_mmcv_ops::test_nms[swin]": "failed",
            },
        )
    )
    absent = {"parity dense": "no dense code published"}
    assert {family: row for family, row in cells.items() if row != absent} == {
        "swin": {"parity classify": "1 record"},
        "regionvit": {"parity dense": "1 record"},
        "swin_mlp": {"parity dense": "1 record"},
        "fan": {"contract": "1 test", "token labels": "1 test"},
    }
    assert formats == {
        "swin": {"official": "C"},
        "regionvit": {"official": "D"},
        "swin_mlp": {"official": "D"},
        "pvt_v2": {"timm": "⇄ C"},
    }


def test_recipes_are_counted_by_file_and_a_family_without_any_says_so(tmp_path):
    cases = ("the_parts_fit[seg/upernet_swin_mlp.py]", "one_trains[seg/upernet_swin_mlp.py]", "names[_base_/swin.py]")
    cells, _ = zoo.read_junit(
        report(tmp_path / "junit.xml", dict.fromkeys((f"test_configs::test_{case}" for case in cases), "passed"))
    )
    assert cells["swin_mlp"]["recipes"] == "1 recipe"
    assert {cells[cls.family]["recipes"] for cls in FAMILIES if cls.family != "swin_mlp"} == {"none"}


def test_a_failed_test_fills_no_cell(tmp_path):
    file = report(tmp_path / "junit.xml", {"test_contract::test_freezing[deit]": "failed"})
    with pytest.raises(UserError, match=r"test_contract::test_freezing\[deit\] failed"):
        zoo.read_junit(file)


@pytest.mark.parametrize("column", zoo.COLUMNS)
def test_an_empty_cell_names_what_to_run(column):
    record = stored()
    record["status"] = {cls.family: dict.fromkeys(zoo.COLUMNS, "1 test") for cls in FAMILIES}
    zoo.page(record)
    del record["status"]["cait"][column]
    with pytest.raises(UserError, match=re.escape(f"cait has no {column!r}; run {zoo.COLUMNS[column]}")):
        zoo.page(record)


def test_speed_file_fills_the_ratios_and_says_where(tmp_path):
    """Read from what ``benchmark speed`` itself writes, so that the two cannot drift apart."""
    forward, training = ({"ours": [1.0, 1.0], "published": [2.0, 2.0]}, {"ours": [3.0, 3.0], "published": [4.0, 4.0]})
    step = {"ours": [1.0], "theirs": [1.0]}
    results = [
        Result("cait_xxs24, 2 × 224², forward", forward, forward, {}, "cait"),
        Result("cait_xxs24, 2 × 224², training", training, training, {}, "cait"),
        Result("optimizer step", step, step, {}),
    ]
    file = tmp_path / "speed.json"
    about = environment(torch.device("cpu"))
    file.write_text(json.dumps({"environment": about, "results": [result.as_dict() for result in results]}))
    cells, machine = zoo.read_speed(file)
    assert cells["cait"] == {"speed ratio": "forward 2.00<br>training 1.33"}
    assert cells["pvt"] == {"speed ratio": zoo.UNTIMED}
    assert about["processor"] in machine and about["torch"] in machine


def test_new_cells_replace_all_of_their_source():
    """A family whose tests are gone must not keep yesterday's count."""
    status = {"cait": {"contract": "9 tests", "speed ratio": "0.50"}, "pvt": {"contract": "8 tests"}}
    merged = zoo.merged(status, {"cait": {"contract": "10 tests"}}, zoo.PYTEST)
    assert merged["cait"] == {"contract": "10 tests", "speed ratio": "0.50"}
    assert merged["pvt"] == {}


def test_our_tests_name_every_family_as_the_page_reads_them(tmp_path):
    """Renamed tests or parameters would silently empty a column."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider"]
    modules = [
        next(TESTS.rglob(f"test_{name}.py"))
        for name in ("parity", "oamixer", "timm_formats", "contract", "configs", "convert")
    ]
    listed = subprocess.run([*command, *modules], capture_output=True, text=True, check=True, cwd=TESTS.parent).stdout
    found = re.findall(r"^tests/\w+/(\w+)\.py::(.+)$", listed, re.MULTILINE)
    cells, formats = zoo.read_junit(
        report(tmp_path / "junit.xml", {f"{module}::{name}": "passed" for module, name in found})
    )
    columns = zoo.COLUMNS.keys() - {"speed ratio"}
    assert {cls.family: columns - cells[cls.family].keys() for cls in FAMILIES} == {
        cls.family: set() for cls in FAMILIES
    }
    assert {family: set(row) for family, row in formats.items()} == {cls.family: set(cls.formats()) for cls in FAMILIES}
    zoo.formats_table(formats)


def test_the_table_of_formats_has_no_cell_without_proof(tmp_path):
    formats = {cls.family: dict.fromkeys(cls.formats(), "⇄ C D") for cls in FAMILIES}
    page = zoo.with_formats(f"before\n{zoo.BEGIN}\nold\n{zoo.END}\nafter\n", formats, "a.md")
    lines = page.splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == ("before", zoo.BEGIN, zoo.END, "after") and "old" not in page
    assert {"deit", "swin"} <= {line.split(" ")[1] for line in lines[2:-2] if "⇄" in line}
    cells = [cell.strip() for line in lines[4:-2] for cell in line.strip("|").split("|")]
    assert len(cells) == len(FAMILIES) * (1 + len(zoo.FORMATS)) and all(cells)
    assert {name for cls in FAMILIES for name in cls.formats()} == set(zoo.FORMATS)
    formats["swin"]["timm"] = "C D"
    with pytest.raises(UserError, match=r"swin has no proof of its format 'timm'; run python -m pytest --junitxml"):
        zoo.formats_table(formats)
    with pytest.raises(UserError, match=r"a\.md: the marks of the table of formats are gone"):
        zoo.with_formats("before\n", formats, "a.md")


def test_check_notices_an_edit_of_the_table_of_formats(tmp_path, capsys):
    for name in ("zoo.json", "zoo.md", "checkpoints.md"):
        shutil.copy(DOCS / name, tmp_path)
    page = tmp_path / "checkpoints.md"
    page.write_text(page.read_text().replace("| swin | ⇄ C D |", "| swin | – |"))
    assert run_zoo(["--check", "--folder", str(tmp_path)]) == 1
    assert "checkpoints.md is not up to date; run docs/make_zoo.py" in capsys.readouterr().out
    assert run_zoo(["--folder", str(tmp_path)]) == 0
    assert page.read_bytes() == (DOCS / "checkpoints.md").read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--check", "--recount"], "--check writes nothing; leave out --recount"),
        (["--folder", "no/such/folder"], "no/such/folder: no such folder"),
        (
            ["--junit", "no/such/junit.xml"],
            "junit.xml: not a report of pytest; write it with python -m pytest --junitxml",
        ),
        (["--speed", "no/such/speed.json"], "speed.json: not a file of tools/benchmark.py speed --case families"),
    ],
)
def test_mistakes_are_one_line(argv, message, tmp_path, capsys):
    shutil.copy(DOCS / "zoo.json", tmp_path)
    folder = [] if "--folder" in argv else ["--folder", str(tmp_path)]
    assert run_zoo([*argv, *folder]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert message in error
