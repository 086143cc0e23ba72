"""Mask R-CNN, Swin-T, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://swin_tiny checkpoints/swin_tiny.safetensors --arch swin_tiny
    tools/train.py configs/det/mask_rcnn_swin.py

Hardware: 8 GPUs × 2 images, as published. Recipe: SwinTransformer/Swin-Transformer-Object-Detection,
configs/swin/mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco.py, there in mixed precision (--amp).
Published: 43.7 box AP, 39.8 mask AP with ImageNet-1k weights, 48 M parameters, 267 G MACs (there, README). Not
reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.SwinTransformer",
        arch="swin_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/swin_tiny.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
