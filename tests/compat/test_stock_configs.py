"""Stock mmdet and mmseg configs under mmengine's own Runner, with two lines added."""

import subprocess
import sys

import pytest
from small_sets import coco, masks

#: The two lines, and a run of two steps on small images by names of the libraries' own.
CODE = """
import sys
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import Runner

MODULE2PACKAGE["mmseg"] = "mmseg"
cfg = Config.fromfile(sys.argv[1])
runner = Runner.from_cfg(cfg)
runner.train()
losses = runner.message_hub.log_scalars
print("loss_token" if "train/loss_token" in losses else "plain", runner.iter, type(runner.model.backbone).__name__)
"""
RUN = """
custom_imports = dict(imports=["mixtransfer"])
custom_hooks = [dict(type="mixtransfer.TokenMixHook", region=dict(type="TokenBlocks"), cell_size=8, prob=1.0{hook})]

work_dir = {work!r}
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=2, val_interval=9)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
param_scheduler = []
default_hooks = dict(checkpoint=None, logger=dict(interval=1))
"""
RESNET = """
_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(init_cfg=None),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
)
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(64, 48)),
    dict(type="PackDetInputs"),
]
data = dict(data_root={data!r}, pipeline=pipeline, metainfo=dict(classes=("ant", "bee", "cat")), filter_cfg=None)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
"""
OURS = """
_base_ = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
size = (48, 64)
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(
        _delete_=True,
        type="mixtransfer.SwinTransformer",
        arch="swin_micro",
        token_classifier=dict(num_classes=150, stages=(3,)),
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=16, norm_cfg=dict(type="BN")),
    auxiliary_head=dict(in_channels=128, channels=16, norm_cfg=dict(type="BN")),
)
pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
data = dict(data_root={data!r}, img_suffix=".png", reduce_zero_label=False, pipeline=pipeline)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
"""


@pytest.mark.parametrize(
    ("config", "write", "hook", "told"),
    [
        (RESNET, coco, ", loss_weight=0", "plain 2 ResNet"),
        pytest.param(OURS, masks, "", "loss_token 2 SwinTransformer", marks=pytest.mark.long),
    ],
    ids=["mmdet's ResNet-50", "mmseg with our Swin"],
)
def test_two_lines_are_all_that_a_stock_config_needs(config, write, hook, told, tmp_path):
    """A process of its own: there mmdet is imported after the config's ``custom_imports``, and nothing before it."""
    data = write(tmp_path / "data")
    path = tmp_path / "stock.py"
    path.write_text(config.format(data=str(data)) + RUN.format(hook=hook, work=str(tmp_path / "work")))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, str(path)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == told
