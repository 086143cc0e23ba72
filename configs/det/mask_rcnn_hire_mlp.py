"""Mask R-CNN, Hire-MLP-T, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://hire_mlp_tiny checkpoints/hire_mlp_tiny.safetensors --arch hire_mlp_tiny
    tools/train.py configs/det/mask_rcnn_hire_mlp.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; there is no code for the published detectors. Published: 39.6 box AP, 36.2 mask AP (arXiv 2108.13341; not
confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.HireMLP",
        arch="hire_mlp_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/hire_mlp_tiny.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
