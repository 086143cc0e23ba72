"""The index of the papers' official files, and who names its entries."""

from __future__ import annotations

import ast
import re

import pytest
from recipes import CONFIGS

from mixtransfer.backbones import backbone_class
from mixtransfer.checkpoints.fetch import cache_folder, located
from mixtransfer.checkpoints.published import find_published, list_published
from mixtransfer.cli import run_command
from mixtransfer.errors import UserError


def test_every_entry_is_a_file_of_a_network_here():
    entries = list_published()
    assert len({entry.name for entry in entries}) == len({entry.address for entry in entries}) == len(entries) > 100
    scores = {"classification": "top-1", "segmentation": "mIoU", "detection": "box AP"}
    for entry in entries:
        assert entry.arch in backbone_class(entry.arch).archs
        assert entry.names in ("official", "mmseg", "mmdet", "detectron2")
        assert re.fullmatch(r"https://\S+", entry.address)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+, [\w/]*README\w*\.md", entry.source)
        assert entry.score == "" or scores[entry.task] in entry.score


def test_scores_are_those_of_the_families():
    """They were read in the same pages by others; a variant without a score there is not compared."""
    compared = 0
    for entry in list_published():
        printed = backbone_class(entry.arch).reported.get(entry.arch)
        if entry.name == entry.arch and entry.score and printed is not None and printed.top1 is not None:
            assert abs(float(entry.score.split()[0]) - printed.top1) < 0.051, entry
            compared += 1
    assert compared > 60


def test_recipes_name_entries_of_their_architecture():
    named = 0
    for path in sorted(CONFIGS.rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for name, arch in re.findall(r"weights://(\S+) \S+ --arch (\S+)", text):
            assert find_published(name).arch == arch
            named += 1
    assert named > 50


def test_the_command_lists_them(capsys):
    assert run_command("weights", ["hornet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["name", "architecture"] and all("hornet" in line for line in lines[1:-2])
    assert run_command("weights", ["no such word"]) == 2
    assert "no file of the papers has 'no such word' in its row" in capsys.readouterr().err


def test_a_file_behind_a_page_goes_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = cache_folder() / "weights" / "pvt_tiny_smmix"
    page = find_published("pvt_tiny_smmix").address
    with pytest.raises(UserError, match=re.escape(f"is behind a page, {page}; put the file by hand into {place}")):
        located("weights://pvt_tiny_smmix")
    place.parent.mkdir(parents=True)
    place.write_text("<html>")
    with pytest.raises(UserError, match="a text or web page"):
        located("weights://pvt_tiny_smmix")
    with pytest.raises(UserError, match=r"unknown file of the papers 'swin_tny'; did you mean swin_tiny.*lists them"):
        located("weights://swin_tny")
