"""The study of two backbones that the page prints is one: its cells, and a command for each of them."""

from __future__ import annotations

import re
from pathlib import Path

from small_sets import masks

from mixtransfer.cli import run_command

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/studies.md"


def test_the_printed_study_has_a_cell_for_each_combination(tmp_path, monkeypatch, capsys):
    block = re.search(r"```python\n# (studies/\S+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(block[2].splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    for folder in ("studies", "checkpoints", "configs/seg"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / block[1]).write_text(block[2], encoding="utf-8")
    masks(tmp_path / "data/mine")
    # Recipes of two lines, as the page says, and files whose contents nobody reads yet.
    for backbone, recipe in (("swin_tiny", "upernet_swin"), ("pvt_v2_b2", "upernet_pvt_v2")):
        base = str(ROOT / f"configs/seg/{recipe}.py")
        (tmp_path / f"configs/seg/upernet_{backbone}.py").write_text(f'"""Mine."""\n_base_ = {base!r}\n')
        (tmp_path / f"checkpoints/{backbone}.safetensors").write_bytes(b"weights")
    assert run_command("study", [block[1], "run", "--launcher", "print"]) == 0
    printed = capsys.readouterr().out
    names = re.findall(r"^# (\S+)$", printed, re.MULTILINE)
    assert len(names) == len(set(names)) == 2 * 2 * 2 * 3
    assert names[0] == "segmentation-swin_tiny-scratch-1of8-s0"
    assert printed.count(" train configs/seg/upernet_pvt_v2_b2.py --data data/mine ") == 12
    assert printed.count("checkpoints/pvt_v2_b2.safetensors") == printed.count("--fraction 1/8") == 12
