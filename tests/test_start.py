"""Starts are quick: nothing is imported or read that a command does not use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from mmengine.config import utils

from mixtransfer.engine.config import read_config

LIBRARIES, SHARDED = "torchvision timm mmseg mmdet mmpretrain", "torch.distributed.fsdp torch.distributed.tensor sympy"
META_SWIN = """
import mixtransfer, torch
with torch.device("meta"):
    assert mixtransfer.build_backbone("swin_micro").layers[0].blocks[0].attn.index.is_meta
"""
#: Code -> packages that it has no use for.
USELESS = {
    "import mixtransfer; mixtransfer.build_backbone('swin_micro')": f"{LIBRARIES} {SHARDED}",
    "import mixtransfer.datasets.before": LIBRARIES,
    "import mixtransfer.pretrain.classifier": f"{LIBRARIES} {SHARDED}",
    "import mixtransfer.engine.runner": SHARDED,
    "import mixtransfer; from mmseg.models import backbones": "timm.models",
    META_SWIN: "torch._dynamo sympy",
    "from mixtransfer.cli import train; train.parser().format_help()": "torch numpy mmengine",
    "from mixtransfer.cli import test; test.parser().format_help()": "torch numpy mmengine",
}


#: Rows that take seconds and hold for one package.
LONG = ("import mixtransfer; from mmseg.models import backbones",)


@pytest.mark.parametrize("code", [pytest.param(c, marks=[pytest.mark.long] * (c in LONG)) for c in USELESS])
def test_packages_without_use_are_not_imported(code):
    program = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(run.stdout.splitlines()[-1])
    assert "mixtransfer" in loaded
    assert [name for name in USELESS[code].split() if name in loaded] == []


#: A program that uses what mmengine imports late.
SHARDING = """
import mixtransfer, sys, torch
from mmengine._strategy import fsdp
from mmengine.model import MMFullyShardedDataParallel, is_model_wrapper
from mmengine.optim import ZeroRedundancyOptimizer
from mmengine.registry import MODEL_WRAPPERS, OPTIMIZERS, STRATEGIES
layer = torch.nn.Linear(2, 2)
assert not is_model_wrapper(layer) and not issubclass(int, MMFullyShardedDataParallel)
assert "torch.distributed.fsdp" not in sys.modules
class Mine(MMFullyShardedDataParallel):
    pass
real = MODEL_WRAPPERS.get("MMFullyShardedDataParallel")
assert real in Mine.__mro__ and issubclass(real, torch.distributed.fsdp.FullyShardedDataParallel)
assert issubclass(Mine, MMFullyShardedDataParallel) and not is_model_wrapper(layer)
assert fsdp.FSDP_CONFIGS.name == "fsdp configs"
assert STRATEGIES.get("FSDPStrategy").__base__.__name__ == "DDPStrategy"
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
config = dict(type="ZeroRedundancyOptimizer", params=layer.parameters(), optimizer_type="SGD", lr=0.5)
sharded = OPTIMIZERS.build(config)
assert isinstance(sharded, ZeroRedundancyOptimizer)
assert isinstance(sharded, torch.distributed.optim.ZeroRedundancyOptimizer)
layer.weight.grad, before = torch.ones(2, 2), layer.weight.detach().clone()
sharded.step()
assert torch.equal(layer.weight, before - 0.5)
"""


def test_what_is_imported_late_is_the_librarys_own(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SHARDING, str(tmp_path / "store")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


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
