"""The config that the page on one's own project prints builds, by mmengine alone."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

#: The configs that mmseg ships.
STOCK = Path(importlib.util.find_spec("mmseg").origin).parent / ".mim/configs"
PAGE = Path(__file__).parents[2] / "docs/your_project.md"


def test_the_config_builds_a_backbone_whose_maps_the_heads_take(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    block = next(block for block in blocks if "_base_" in block)
    assert block.count('"../_base_') == 3
    (tmp_path / "mine.py").write_text(block.replace('"../', f'"{STOCK}/'))
    cfg = Config.fromfile(tmp_path / "mine.py")
    init_default_scope("mmseg")
    from mmseg.registry import MODELS

    cfg.model.backbone.pop("init_cfg")
    backbone = MODELS.build(dict(cfg.model.backbone, arch="swin_tiny", with_embedding=False)).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 64))
    channels = [part.shape[1] for part in maps]
    assert channels == list(cfg.model.decode_head.in_channels)
    assert cfg.model.auxiliary_head.in_channels == channels[cfg.model.auxiliary_head.in_index]
    assert f"`{backbone.out_channels} {backbone.strides}`" in PAGE.read_text("utf-8")
