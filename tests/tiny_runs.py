"""Configs of a few seconds: our recipes on a tiny network and on sixteen small scenes, run in this process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from mmengine.hooks import Hook

from mixtransfer.cli import run_command
from mixtransfer.datasets.scenes import write_scenes
from mixtransfer.registry import HOOKS

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = {"seg": "seg/upernet_swin_tlalign.py", "det": "det/mask_rcnn_swin_tlalign.py"}
SHARED = """
region = dict(type="TokenBox", alpha=1.0)
mix = dict(type="mixtransfer.TokenMixHook", region=region, prob=0.8, cell_size=8, min_pixels=1)
custom_hooks = [mix, dict(type="mixtransfer.ProbeHook")]
default_hooks = dict(logger=dict(interval=1))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""
#: Parts of Mask R-CNN of a few channels, and few proposals.
SMALL_DETECTOR = dict(
    neck=dict(out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=8, num_convs=1),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
)
TINY = {
    "seg": SHARED
    + """
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(64, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch="swin_micro", init_cfg=None, out_indices=(2, 3), token_classifier=dict(stages=(1,))),
    decode_head=dict(channels=8, in_index=[0, 1]),
    auxiliary_head=dict(channels=8, in_index=0),
)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=pipeline))
train_cfg = dict(max_iters=6, val_interval=3)
default_hooks["checkpoint"] = dict(interval=100)
""",
    "det": SHARED
    + f"""
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=(64, 64), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
model = dict(
    backbone=dict(arch="swin_micro", init_cfg=None),
    **{SMALL_DETECTOR!r},
)
train_dataloader = dict(dataset=dict(pipeline=pipeline))
train_cfg = dict(max_epochs=2, val_interval=5)
""",
}


@HOOKS.register_module()
class ProbeHook(Hook):
    """Keep what each iteration logs, and meddle with training when told to."""

    losses: list[dict[str, float]] = []
    stop_after = 0
    stop_signal = signal.SIGINT
    poison_at = 0

    @classmethod
    def reset(cls, stop_after: int = 0, poison_at: int = 0, stop_signal: int = signal.SIGINT) -> None:
        cls.losses, cls.stop_after, cls.poison_at, cls.stop_signal = [], stop_after, poison_at, stop_signal

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.poison_at:
            runner.model.decode_head.conv_seg.bias.data.fill_(float("nan"))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        type(self).losses.append({key: float(value) for key, value in outputs.items()})
        if runner.iter + 1 == self.stop_after:
            os.kill(os.getpid(), self.stop_signal)


@HOOKS.register_module()
class WeightsHook(Hook):
    """Write what a process saw and holds at the end of training: its losses and its parameters."""

    def __init__(self, folder: str):
        self.folder, self.losses = Path(folder), []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: float(value) for key, value in outputs.items()})

    def after_train(self, runner):
        # Without a GPU the running statistics of BatchNorm are each process's own.
        weights = {name: value.detach() for name, value in runner.model.module.named_parameters()}
        torch.save({"losses": self.losses, "weights": weights}, self.folder / f"rank{runner.rank}.pt")


def small_scenes(root: Path) -> Path:
    return write_scenes(root / "scenes", train=16, val=2, classify_train=12, classify_val=12, size=(64, 64))


def tiny_config(task: str, folder: Path, more: str = "") -> Path:
    path = folder / f"tiny_{task}.py"
    path.write_text(f"_base_ = {str(CONFIGS / RECIPES[task])!r}\n{TINY[task]}\n{more}", encoding="utf-8")
    return path


def train(config: Path, data: Path, work_dir: Path, *options: str, workers: int = 0, cfg_options: tuple = ()) -> int:
    return run_command(
        "train",
        [
            *(str(config), "--data", str(data), "--work-dir", str(work_dir), *options),
            *("--cfg-options", f"train_dataloader.num_workers={workers}", *cfg_options),
        ],
    )
