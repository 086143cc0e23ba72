"""Cascade Mask R-CNN, Swin-T, COCO, 36 epochs with multi-scale training and crops.

    tools/convert.py weights://swin_tiny checkpoints/swin_tiny.safetensors --arch swin_tiny
    tools/train.py configs/det/cascade_mask_rcnn_swin.py

Hardware: 8 GPUs × 2 images, as published. Recipe: SwinTransformer/Swin-Transformer-Object-Detection,
configs/swin/cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco.py, there in mixed
precision (--amp). Published: 50.4 box AP, 43.7 mask AP with ImageNet-1k weights, 86 M parameters, 745 G MACs (there,
README). Not reproduced yet.
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

# Other sizes (--arch) as their published files have them.
sizes = dict(swin_small=dict(), swin_base=dict(drop_path=0.3))
