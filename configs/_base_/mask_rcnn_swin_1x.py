"""Mask R-CNN on COCO, 12 epochs with multi-scale training and crops, as Swin's (see det/mask_rcnn_swin.py)."""

_base_ = [
    "./models/mask_rcnn.py",
    "./datasets/coco_instance_crop.py",
    "./schedules/adamw_1x.py",
    "mmdet::_base_/default_runtime.py",
    "./runtime.py",
]
