"""Cascade Mask R-CNN, Swin-T, COCO, 36 epochs with multi-scale training and crops.

    tools/convert.py swin_tiny_patch4_window7_224.pth checkpoints/swin_tiny.safetensors --arch swin_tiny
    tools/train.py configs/det/cascade_mask_rcnn_swin.py

Hardware: 8 GPUs × 2 images, as published. Recipe: Swin, arXiv 2103.14030, appendix A2.2, 3x. Published: 50.4 box AP,
43.7 mask AP with ImageNet-1k weights (SwinTransformer/Swin-Transformer-Object-Detection, README). Not reproduced yet.
"""

_base_ = "../_base_/cascade_mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.SwinTransformer",
        arch="swin_tiny",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/swin_tiny.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
