"""Mask R-CNN, Swin-MLP-T (C24), COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py swin_mlp.pth checkpoints/swin_mlp_tiny_c24_w8_256.safetensors --arch swin_mlp_tiny_c24_w8_256
    tools/train.py configs/det/mask_rcnn_swin_mlp.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; no dense recipe is published for Swin-MLP. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.SwinMLP",
        arch="swin_mlp_tiny_c24_w8_256",
        output_norm="layer",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/swin_mlp_tiny_c24_w8_256.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
