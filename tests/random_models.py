"""Tiny models with random weights on small sets, their checkpoints, and what is computed of them by hand."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import torch
from small_sets import NAMES
from tiny_runs import tiny_config

from mixtransfer.engine.build import prepare
from mixtransfer.engine.config import load_config
from mixtransfer.registry import MODELS

#: A test scale that is not the size of the pictures, 48 × 64.
SEG = """
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 72), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
test_dataloader["dataset"] = dict(pipeline=test_pipeline)
"""
DET = """
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 96), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
test_dataloader["dataset"] = dict(pipeline=test_pipeline)
# Untrained scores are near one over the number of classes.
model["test_cfg"] = dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=12))
"""


def made(task, data, folder, more):
    """Return a tiny model with random weights, its config, the config's file, its checkpoint and its data."""
    path = tiny_config(task, folder, more)
    cfg = load_config(path, ("test",), data=str(data), work_dir=folder / "run")
    prepare(cfg, "predict")
    torch.manual_seed(0)
    model = MODELS.build({**cfg.model, "_scope_": cfg.default_scope}).eval()
    # Untrained outputs hardly differ between places.
    for name, value in model.named_parameters():
        if name.endswith(("conv_seg.weight", "fc_cls.weight", "fc_reg.weight", "conv_logits.weight")):
            value.data *= 30
    checkpoint = folder / "model.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {}}, checkpoint)
    return SimpleNamespace(model=model, cfg=cfg, path=path, checkpoint=checkpoint, data=data, folder=folder)


def normalized(found, image, size):
    image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    pre = found.cfg.model.data_preprocessor
    image = (image[..., ::-1].astype(np.float32) - np.float32(pre.mean)) / np.float32(pre.std)
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None]


def mean_iou(labels, truths):
    """Mean over the classes of intersection over union, in percent; truths of 255 are void."""
    labels, truths = np.concatenate([x.ravel() for x in labels]), np.concatenate([x.ravel() for x in truths])
    labels, truths = labels[truths != 255], truths[truths != 255]
    return 100 * np.mean(
        [((labels == k) & (truths == k)).sum() / ((labels == k) | (truths == k)).sum() for k in range(len(NAMES))]
    )
