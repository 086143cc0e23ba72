"""Commands that README and docs print can be typed: they parse, their configs exist, their options apply.

Those that need no files run. What the others do is tested where their commands are: nothing here trains.
"""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from recipes import read

from mixtransfer.cli import COMMANDS, run_command
from mixtransfer.engine.cfg_options import apply_options
from mixtransfer.engine.recipes import CONFIGS, find_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Commands under the names that their files in tools/ have.
TOOLS = {"inspect_checkpoint": "inspect"}
#: What a reader puts a name of their own for.
OWN = re.compile(r"[A-Z][A-Z_]+(\.\w+)?$")


def typed(text: str) -> Iterator[str]:
    """Yield the lines of shell blocks, indented ones too, and the code spans that have a command in them."""
    blocks = [block for _, block in re.findall(r"^```(sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks.append("\n".join(re.findall(r"^(?: {4})+(\S.*)$", prose, re.MULTILINE)))
    for block in blocks:
        yield from re.sub(r"\s*\\\n\s*", " ", block).splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^ {4}.*$", "", prose, flags=re.MULTILINE))


def commands(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return (command, arguments) of everything in a page that starts the package."""
    found = []
    for line in typed(text):
        if "…" in line or not re.search(r"tools/\w+\.py |\bmixtransfer [a-z-]", line):
            continue
        words = shlex.split(line, comments=True)
        for number, word in enumerate(words):
            match = re.fullmatch(r"(?:.*/)?tools/(\w+)\.py", word)
            if match and number + 1 < len(words):
                found.append((TOOLS.get(match[1], match[1]), tuple(words[number + 1 :])))
                break
            if word.rpartition("/")[2] == "mixtransfer" and words[number + 1].lstrip("-") in (*COMMANDS, "version"):
                found.append((words[number + 1], tuple(words[number + 2 :])))
                break
    return list(dict.fromkeys(found))


def printed() -> list:
    return [
        pytest.param(*command, id=f"{page.stem}: {shlex.join((command[0], *command[1]))[:90]}")
        for page in PAGES
        for command in commands(page.read_text(encoding="utf-8"))
        if command[0] != "--version"
    ]


def parser_of(name: str, argv: tuple[str, ...]):
    module = "benchmarks.command" if (name, argv[:1]) == ("benchmark", ("speed",)) else f"mixtransfer.cli.{name}"
    return importlib.import_module(module).parser(), argv[1:] if module.startswith("bench") else argv


def test_commands_are_found_however_they_are_printed():
    text = """\
```sh
python tools/convert.py A B \\
    --to timm   # a note
torchrun --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch
.venv/bin/mixtransfer doctor
```
Say `mixtransfer data check DIR`, not `tools/train.py` or `mixtransfer.zoo`.

    srun tools/test.py CONFIG CHECKPOINT
"""
    assert commands(text) == [
        ("convert", ("A", "B", "--to", "timm")),
        ("train", ("CONFIG", "--launcher", "pytorch")),
        ("doctor", ()),
        ("test", ("CONFIG", "CHECKPOINT")),
        ("data", ("check", "DIR")),
    ]
    assert len(printed()) > 20


@pytest.mark.parametrize(("name", "argv"), printed())
def test_a_printed_command_can_be_typed(name, argv, capsys):
    parser, rest = parser_of(name, argv)
    try:
        args = parser.parse_args(rest)
    except SystemExit as stop:
        # --help ends so too, and running text names an option without the files that the command takes.
        said = capsys.readouterr().err
        assert stop.code == 0 or "the following arguments are required: " in said, said
        return
    config = getattr(args, "config", None)
    if config is not None and not OWN.fullmatch(config):
        cfg = copy.deepcopy(read(find_config(config).resolve().relative_to(CONFIGS).as_posix()))
        options = [option for option in getattr(args, "cfg_options", [])]
        apply_options(cfg, options, config)


def test_what_needs_no_files_runs(capsys):
    for argv in (["upernet"], ["--paths", "nuts"]):
        assert run_command("configs", argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert Path(lines[-1]).name == "mask_rcnn_swin_micro_nuts.py" and Path(lines[-1]).is_file()
    assert run_command("configs", ["no such word"]) == 2
    assert "no config has 'no such word' in its line" in capsys.readouterr().err
