"""The zoo page: what every variant costs and scores, and what tests and benchmarks say of every family.

Nothing of it is typed: sizes and published numbers come from the families' tables, parameters and multiply-accumulates
are counted, and the status of a family is read from pytest's own report and from the file of ``benchmark speed``. The
same report fills the table of formats in the page on checkpoints.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import chooser
import recipe_pages

from mixtransfer.backbones import FAMILIES, Backbone
from mixtransfer.backbones.reported import Reported
from mixtransfer.checkpoints.published import list_published
from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.cli import run_main
from mixtransfer.errors import UserError
from mixtransfer.evaluation.complexity import complexity
from mixtransfer.progress import progress_line

__all__ = [
    "COLUMNS",
    "PYTEST",
    "SPEED",
    "deviation",
    "dumps",
    "formats_table",
    "merged",
    "page",
    "read_junit",
    "read_speed",
    "status_table",
    "with_formats",
]

PYTEST = "python -m pytest --junitxml FILE, then docs/make_zoo.py --junit FILE"
SPEED = "tools/benchmark.py speed --case families --json FILE, then docs/make_zoo.py --speed FILE"
#: Columns of the status table, and what fills them.
COLUMNS = {
    "parity classify": PYTEST,
    "parity dense": PYTEST,
    "contract": PYTEST,
    "token labels": PYTEST,
    "recipes": PYTEST,
    "speed ratio": SPEED,
}
#: Cells that no test can fill, and why.
ABSENT = dict.fromkeys(
    ((family, "parity dense") for family in ("fan_swin", "mlp_mixer", "convmixer", "dynamicvit")),
    "no dense code published",
)
UNTIMED = "not timed yet"
#: Tests that fill cells of the parity columns: module and function, columns, and what one of their cases is called.
PARITY = {
    ("test_parity", "test_classifier_equals_published"): (("parity classify",), "record"),
    ("test_oamixer", "test_masked_classifier_equals_published"): (("parity classify",), "record"),
    ("test_parity", "test_dense_maps_equal_published"): (("parity dense",), "record"),
    ("test_timm_formats", "test_equals_timm_from_its_names"): (("parity classify", "parity dense"), "timm network"),
}
#: Formats of checkpoints, the columns of their table, and marks of their cells: what passed tests say.
FORMATS = ("official", "timm", "torchvision", "transformers", "mmpretrain", "mmdet", "mmseg", "detectron2")
MARKS = {"both ways": "⇄", "classifier": "C", "dense": "D"}
#: Tests that fill cells of the table of formats, and their marks; None where the last parameter names it.
PROOFS = {
    "test_a_format_goes_there_and_back_with_the_same_bytes": "both ways",
    "test_equals_the_librarys_network_both_ways": None,
}
BEGIN, END = "<!-- written by docs/make_zoo.py --junit FILE -->", "<!-- up to here -->"
#: Records that are named after their repository, not after the family.
ALIASES = (("sequencer", "sequencer2d"),)
HEADER = ("pixels", "parameters, M", "published", "MACs, G", "published", "top-1", "box AP", "mask AP", "mIoU")
TOLERANCE = 0.01
DASH = "–"

INTRODUCTION = """\
# Model zoo

Written by `python docs/make_zoo.py` from the size tables in `mixtransfer/backbones`, the counts in
[`zoo.json`](zoo.json) and the reports of tests and benchmarks; `--check` says whether it is up to date. Do not edit it.

- *Parameters* are those of the classifier with 1000 classes, in millions.
- *MACs* are multiply-accumulates of one image in units of 10⁹. Papers print them as FLOPs. Ours are those of all
  convolutions, recurrences and matrix products, the products of attention included; element-wise work and Fourier
  transforms are left out.
- *Published* numbers are the authors', from the sources below each table; {dash} stands for a number that they do not
  print, or that we could not read. † marks one that is off ours by more than 1 % and more than its rounding.
- Scores are the published ones: ImageNet-1k top-1, AP of boxes and masks on COCO val2017, mean IoU on ADE20K's
  validation set at a single scale. **We have reproduced none of them yet.** The last column links the recipe that gives
  a score, for another size with `--arch NAME`; below the table stands why none does.
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the script."""
    options = argparse.ArgumentParser(
        prog="docs/make_zoo.py",
        description="Count the variants that zoo.json lacks, add what reports of tests and of speed say of the "
        "families, and write from that, the size tables and the recipes "
        "the page zoo.md, the tables in choose.md and checkpoints.md, configs/README.md, configs/metafiles and"
        " model-index.yml.",
    )
    options.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not up to date")
    options.add_argument("--recount", action="store_true", help="count all variants anew")
    options.add_argument("--junit", type=Path, metavar="FILE", help="report of python -m pytest --junitxml FILE")
    options.add_argument("--speed", type=Path, metavar="FILE", help="file of speed --case families --json FILE")
    options.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="where the pages and zoo.json are (default: the script's)",
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Write the pages, or check them; return 1 if one is not up to date."""
    if args.check and (args.recount or args.junit or args.speed):
        raise UserError("--check writes nothing; leave out --recount, --junit and --speed")
    if not args.folder.is_dir():
        raise UserError(f"--folder {args.folder}: no such folder; run this in a checkout, or give the folder of zoo.md")
    store = args.folder / "zoo.json"
    record = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    record = {"complexity": {}, "status": {}, "speed": "", "formats": {}, **record}
    if not args.check:
        record["complexity"] = _counted({} if args.recount else record["complexity"])
    if args.junit:
        status, record["formats"] = read_junit(args.junit)
        record["status"] = merged(record["status"], status, PYTEST)
    if args.speed:
        ratios, record["speed"] = read_speed(args.speed)
        record["status"] = merged(record["status"], ratios, SPEED)
    zoo, choose, checkpoints = (args.folder / name for name in ("zoo.md", "choose.md", "checkpoints.md"))
    texts = {zoo: page(record)}
    root = args.folder.parent
    # A folder of pages alone has no recipes beside it.
    if (root / "configs").is_dir():
        texts[root / "configs/README.md"] = recipe_pages.configs_page()
        texts |= {root / name: text for name, text in recipe_pages.metafiles(record["complexity"]).items()}
    if choose.exists():
        counts = record["complexity"]
        before, after = around(_text(choose), chooser.BEGIN, chooser.END, "the tables", str(choose))
        texts[choose] = f"{before}{chooser.tables(counts)}{after}"
        texts |= {args.folder / name: text for name, text in chooser.charts(counts).items()}
    if checkpoints.exists():
        texts[checkpoints] = with_formats(_text(checkpoints), record["formats"], str(checkpoints))
    if args.check:
        old = [path for path, text in texts.items() if _text(path) != text]
        for path in old:
            print(f"{path} is not up to date; run docs/make_zoo.py")
        return 1 if old else 0
    for path, text in {store: dumps(record), **texts}.items():
        path.parent.mkdir(exist_ok=True)
        with replace_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    print(status_table(record["status"], record["speed"]))
    return 0


def page(record: Mapping[str, Any]) -> str:
    """Return the page in Markdown.

    Args:
        record: ``complexity``, architecture name to ``size``, ``parameters`` and ``macs``; ``status``, family to the
            cells of :data:`COLUMNS`, empty before the first report; ``speed``, what its ratios were measured on.

    Raises:
        UserError: a count or a cell is missing, or a published number is off ours without a stated reason.
    """
    parts = [INTRODUCTION.format(dash=DASH), status_table(record["status"], record["speed"])]
    recipes = recipe_pages.by_family()
    parts += [_section(cls, record["complexity"], recipe_pages.links(cls, recipes[cls.family])) for cls in FAMILIES]
    return "\n".join(parts)


def status_table(status: Mapping[str, Mapping[str, str]], machine: str) -> str:
    """Return the section of the page that says what passed; ``machine`` is what the ratios were measured on.

    Raises:
        UserError: a cell is missing.
    """
    lines = ["## Status", ""]
    if not status:
        commands = (f"- `{remedy.replace(', then ', '`, then `')}`" for remedy in (PYTEST, SPEED))
        return "\n".join([*lines, "Not recorded yet; these record it:", "", *commands, ""])
    lines += [
        "What passed in the last recorded run, counted by pytest: networks that compute what the published code (a",
        "record) or another library computes, as classifiers and as dense backbones; tests of the contract of all",
        "backbones, and of the labels that travel with their tokens, by the family's rule; recipes that build. A ratio",
        f"is the time of the published way of computing the same divided by ours, the median over rounds ({machine}).",
        "",
        f"| family | {' | '.join(COLUMNS)} | label rule |",
        f"|---|{'---|' * len(COLUMNS)}---|",
    ]
    for cls in FAMILIES:
        cells = status.get(cls.family, {})
        for column, remedy in COLUMNS.items():
            if column not in cells:
                raise UserError(f"zoo.json: {cls.family} has no {column!r}; run {remedy}")
        row = " | ".join(cells[column] for column in COLUMNS)
        lines.append(f"| [{cls.family}](#{cls.family}) | {row} | {cls.label_rule} |")
    return "\n".join([*lines, ""])


def formats_table(formats: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table of formats in Markdown, from what :func:`read_junit` says of each family's formats.

    Raises:
        UserError: a format of a family was not converted both ways.
    """
    lines = [f"| family | {' | '.join(FORMATS)} |", f"|---|{'---|' * len(FORMATS)}"]
    for cls in FAMILIES:
        cells = formats.get(cls.family, {})
        for name in cls.formats():
            if MARKS["both ways"] not in cells.get(name, ""):
                raise UserError(f"zoo.json: {cls.family} has no proof of its format {name!r}; run {PYTEST}")
        lines.append(f"| {cls.family} | {' | '.join(cells.get(name, DASH) for name in FORMATS)} |")
    return "\n".join(lines)


def with_formats(text: str, formats: Mapping[str, Mapping[str, str]], name: str) -> str:
    """Return the page ``text`` with the table of formats between its two marks; ``name`` is the page's, for messages.

    Raises:
        UserError: the page has no such marks, or a format was not converted both ways.
    """
    before, after = around(text, BEGIN, END, "the table of formats", name)
    return f"{before}{formats_table(formats)}{after}" if formats else text


def around(text: str, begin: str, end: str, what: str, name: str) -> tuple[str, str]:
    """Return the parts of a page before and after ``what``, with the marks between which it stands.

    Raises:
        UserError: the page has no such marks.
    """
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise UserError(f"{name}: the marks of {what} are gone; put the lines {begin} and {end} back")
    return f"{before}{begin}\n", f"\n{end}{after}"


def deviation(measured: float, printed: float) -> float | None:
    """Return by what share ``measured`` is off ``printed``; None within 1 % or the rounding of ``printed``."""
    decimals = 0 if isinstance(printed, int) else len(repr(printed).partition(".")[2])
    if abs(measured - printed) <= max(0.5 * 10**-decimals, TOLERANCE * printed):
        return None
    return measured / printed - 1


def read_junit(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Return the cells that a report of pytest fills: of each family's status, and of each family's formats.

    Raises:
        UserError: the file is no such report, or one of the tests that fill cells failed.
    """
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    proved: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for case in _cases(path):
        module, (function, _, arguments) = case.get("classname").rpartition(".")[2], case.get("name").partition("[")
        cells = list(_cells(module, function, arguments.rstrip("]")))
        proofs = list(_proofs(module, function, arguments.rstrip("]")))
        if (cells or proofs) and any(case.find(tag) is not None for tag in ("failure", "error")):
            raise UserError(f"{path}: {module}::{case.get('name')} failed; the page counts passed tests only, mend it")
        if case.find("skipped") is None:
            for family, column, unit, item in cells:
                found[family, column][unit].add(item)
            for family, name, proof in proofs:
                proved[family][name].add(proof)
    if not found and not proved:
        raise UserError(f"{path}: no test of a family in it; write it with {PYTEST.partition(',')[0]}")
    status: dict[str, dict[str, str]] = defaultdict(dict)
    for (family, column), why in ABSENT.items():
        status[family][column] = why
    if any(column == "recipes" for _, column in found):
        status |= {cls.family: {**status[cls.family], "recipes": "none"} for cls in FAMILIES}
    for (family, column), units in found.items():
        counts = (f"{len(items)} {unit}{'s' * (len(items) > 1)}" for unit, items in sorted(units.items()))
        status[family][column] = ", ".join(counts)
    formats = {
        family: {name: " ".join(mark for what, mark in MARKS.items() if what in proofs) for name, proofs in row.items()}
        for family, row in proved.items()
    }
    return dict(status), formats


def read_speed(path: Path) -> tuple[dict[str, dict[str, str]], str]:
    """Return, for each family, its cell of ratios, and what they were measured on.

    Raises:
        UserError: the file was not written by ``benchmark speed`` or holds no contest of a family.
    """
    ratios: dict[str, list[str]] = defaultdict(list)
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        for result in written["results"]:
            if result["family"]:
                what = result["contest"].rpartition(", ")[2]
                ratios[result["family"]] += [f"{what} {1 / ratio['median']:.2f}" for ratio in result["ratios"].values()]
        about = written["environment"]
        machine = f"{about['processor']}, {about['device']}, {about['threads']} threads, torch {about['torch']}"
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a file of {SPEED.partition(',')[0]}") from None
    if not ratios:
        raise UserError(f"{path}: no contest of a family in it; write it with {SPEED.partition(',')[0]}")
    cells = {cls.family: "<br>".join(ratios[cls.family]) or UNTIMED for cls in FAMILIES}
    return {family: {"speed ratio": cell} for family, cell in cells.items()}, machine


def merged(
    status: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]], source: str
) -> dict[str, dict[str, str]]:
    """Return ``status`` with ``new`` in place of all cells that come from ``source``, a value of :data:`COLUMNS`."""
    kept = {
        family: {column: cell for column, cell in cells.items() if COLUMNS.get(column, source) != source}
        for family, cells in status.items()
    }
    families = [cls.family for cls in FAMILIES]
    return {family: {**kept.get(family, {}), **new.get(family, {})} for family in families}


def dumps(record: Mapping[str, Any]) -> str:
    """Return the record as JSON with a line for each variant and family."""
    parts = []
    for name, content in record.items():
        if isinstance(content, Mapping):
            lines = (f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items())
            content = "{\n" + ",\n".join(lines) + "\n }"
        else:
            content = json.dumps(content, ensure_ascii=False)
        parts.append(f" {json.dumps(name)}: {content}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _section(
    cls: type[Backbone], counts: Mapping[str, Mapping[str, Any]], links: Mapping[str, tuple[str, list[str]]]
) -> str:
    summary = sys.modules[cls.__module__].__doc__.partition("\n")[0]
    sources = list(dict.fromkeys(source for row in cls.reported.values() for source in row.sources))
    lines = [
        f"## {cls.family}",
        "",
        summary,
        "",
        f"| variant | {' | '.join(HEADER)} | source | recipe |",
        f"|---|{'---:|' * len(HEADER)}---|---|",
    ]
    notes, without = [], {}
    for arch in cls.archs:
        if arch not in counts:
            raise UserError(f"zoo.json: {arch} is not counted; run docs/make_zoo.py")
        count, row = counts[arch], cls.reported.get(arch, Reported())
        costs = [(count["parameters"] / 1e6, row.params, "M parameters"), (count["macs"] / 1e9, row.flops, "G MACs")]
        cells = []
        for measured, printed, unit in costs:
            share = None if printed is None else deviation(measured, printed)
            cells += [f"{measured:.2f}", _number(printed) + (" †" if share is not None else "")]
            if share is not None:
                if not row.reason:
                    raise UserError(
                        f"{arch}: {measured:.2f} {unit} against {printed} published; state the reason in `published`"
                    )
                notes.append(f"- † `{arch}`, {unit[2:]} {100 * share:+.1f} % off the published: {row.reason}.")
        scores = [_number(score) for score in (row.top1, row.box_ap, row.mask_ap, row.miou)]
        numbers = ", ".join(str(sources.index(source) + 1) for source in row.sources) or DASH
        size = "×".join(str(side) for side in dict.fromkeys(count["size"]))
        shown, reasons = links.get(arch, (DASH, []))
        for reason in reasons:
            without.setdefault(reason, []).append(f"`{arch}`")
        lines.append(f"| {' | '.join([arch, size, *cells, *scores, numbers, shown])} |")
    notes += [f"- no recipe gives {', '.join(archs)}, {reason}." for reason, archs in without.items()]
    lines += ["", *notes] if notes else []
    lines += ["", *(f"{number}. {source}." for number, source in enumerate(sources, 1))] if sources else []
    files = [entry for entry in list_published() if entry.arch in cls.archs]
    named = ", ".join(f"[{entry.name}]({entry.address})" for entry in files)
    lines += ["", f"Authors' files (`mixtransfer weights`): {named}."] if files else []
    return "\n".join([*lines, ""])


def _number(value: float | None) -> str:
    return DASH if value is None else str(value)


def _cases(path: Path) -> Iterator[ElementTree.Element]:
    try:
        return ElementTree.parse(path).iter("testcase")
    except (OSError, ElementTree.ParseError):
        raise UserError(f"{path}: not a report of pytest; write it with {PYTEST.partition(',')[0]}") from None


def _cells(module: str, function: str, arguments: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (family, column, unit, item) for each cell that a passed test counts in."""
    if (module, function) in PARITY and (family := _family(arguments)) is not None:
        columns, unit = PARITY[module, function]
        # A record counts once, not once a precision.
        yield from ((family, column, unit, re.sub(r"-f\d\d$", "", arguments)) for column in columns)
    elif module == "test_contract":
        for word in arguments.split("-"):
            if (family := _family(word.partition("/")[0], whole=True)) is not None:
                column = "token labels" if "label" in function else "contract"
                yield family, column, "test", f"{function}[{arguments}]"
    elif module == "test_configs" and re.fullmatch(r"(?!_base_)[\w/]+\.py", arguments):
        if (family := _family(arguments)) is not None:
            yield family, "recipes", "recipe", arguments


def _proofs(module: str, function: str, arguments: str) -> Iterator[tuple[str, str, str]]:
    """Yield (family, format, key of :data:`MARKS`) for each cell of the table of formats that a passed test marks."""
    if module == "test_convert" and function in PROOFS:
        family, name, *use = arguments.split("-")
        yield family, name, PROOFS[function] or use[0]
    elif PARITY.get((module, function), ((), ""))[1] == "record" and (family := _family(arguments)) is not None:
        (column,), _ = PARITY[module, function]
        yield family, "official", {"parity classify": "classifier", "parity dense": "dense"}[column]


def _family(text: str, whole: bool = False) -> str | None:
    """Return the family that ``text`` names, itself or by an architecture; the longest name in it counts."""
    names = [*ALIASES, *((name, cls.family) for cls in FAMILIES for name in (cls.family, *cls.archs))]
    found = [(len(name), family) for name, family in names if (name == text if whole else name in text)]
    return max(found)[1] if found else None


def _counted(counts: dict[str, dict]) -> dict[str, dict]:
    """Return the counts of all architectures in the order of the families; those in ``counts`` are taken over."""
    archs = [arch for family in FAMILIES for arch in family.archs]
    progress = progress_line("counted")
    for done, arch in enumerate(archs, 1):
        if arch not in counts:
            count = complexity(arch)
            counts[arch] = {"size": count.size, "parameters": count.parameters, "macs": count.macs}
        progress(done, len(archs))
    return {arch: counts[arch] for arch in archs}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(run_main("make_zoo", parser(), run, sys.argv[1:]))
