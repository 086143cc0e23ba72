"""Mask R-CNN on COCO, 12 epochs."""

_base_ = [
    "./models/mask_rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "./schedules/adamw_1x.py",
    "mmdet::_base_/default_runtime.py",
    "./runtime.py",
]
