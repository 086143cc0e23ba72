"""Starts are quick: nothing is imported or read that a command does not use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from mmengine.config import utils

from mixtransfer.engine.config import read_config

#: Code -> packages that it has no use for.
USELESS = {
    "import mixtransfer; mixtransfer.build_backbone('swin_micro')": "torchvision timm mmseg mmdet mmpretrain",
    "import mixtransfer.datasets.before": "torchvision timm mmseg mmdet mmpretrain",
    "import mixtransfer.pretrain.classifier": "torchvision timm mmseg mmdet mmpretrain",
    "from mixtransfer.cli import train; train.parser().format_help()": "torch numpy mmengine",
    "from mixtransfer.cli import test; test.parser().format_help()": "torch numpy mmengine",
}


@pytest.mark.parametrize("code", USELESS)
def test_packages_without_use_are_not_imported(code):
    program = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(run.stdout.splitlines()[-1])
    assert "mixtransfer" in loaded
    assert [name for name in USELESS[code].split() if name in loaded] == []


def test_no_table_of_results_is_read_with_a_config(monkeypatch):
    expected = read_config("configs/seg/upernet_swin.py")
    monkeypatch.setattr(utils, "load", None)
    assert read_config("configs/seg/upernet_swin.py").to_dict() == expected.to_dict()
    assert expected.model.decode_head.channels == 512


def test_a_base_by_a_name_of_a_table_is_found(tmp_path):
    file = tmp_path / "config.py"
    file.write_text('_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"\n')
    assert read_config(file).model.type == "FasterRCNN"
    file.write_text('_base_ = "mmdet::faster_rcnn/no_such.py"\n')
    with pytest.raises(Exception, match="no_such"):
        read_config(file)
