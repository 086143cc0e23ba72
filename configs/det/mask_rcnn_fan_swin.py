"""Mask R-CNN, FAN-Swin-T, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py fan_swin_tiny.pth.tar checkpoints/fan_swin_tiny.safetensors --arch fan_swin_tiny
    tools/train.py configs/det/mask_rcnn_fan_swin.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py); no dense recipe is published
for FAN-Swin. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.FANSwin",
        arch="fan_swin_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/fan_swin_tiny.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
