"""Cascade Mask R-CNN, Hire-MLP-L, COCO, 36 epochs with multi-scale training and crops.

    tools/convert.py hire_mlp_large.pth checkpoints/hire_mlp_large.safetensors --arch hire_mlp_large
    tools/train.py configs/det/cascade_mask_rcnn_hire_mlp.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin-B's Cascade Mask R-CNN (cascade_mask_rcnn_swin.py), as there is
no code for the published detector. Published: 51.7 box AP, 44.8 mask AP (arXiv 2108.13341, abstract, which does not
name the size; not confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/cascade_mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.HireMLP",
        arch="hire_mlp_large",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="checkpoints/hire_mlp_large.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
