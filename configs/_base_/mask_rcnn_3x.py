"""Mask R-CNN on COCO, 36 epochs with multi-scale training and crops."""

_base_ = [
    "./models/mask_rcnn.py",
    "./datasets/coco_instance_crop.py",
    "./schedules/adamw_3x.py",
    "mmdet::_base_/default_runtime.py",
    "./runtime.py",
]
