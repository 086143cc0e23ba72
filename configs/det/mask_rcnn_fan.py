"""Mask R-CNN, FAN-T-Hybrid, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://fan_hybrid_tiny checkpoints/fan_hybrid_tiny.safetensors --arch fan_hybrid_tiny
    tools/train.py configs/det/mask_rcnn_fan.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; the paper (arXiv 2204.12451) has Cascade Mask R-CNN, cascade_mask_rcnn_fan.py. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.FAN",
        arch="fan_hybrid_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/fan_hybrid_tiny.safetensors"),
    ),
    neck=dict(in_channels=[128, 256, 192, 768]),
)
