"""Mask R-CNN, DeiT-S, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://deit_small checkpoints/deit_small.safetensors --arch deit_small
    tools/train.py configs/det/mask_rcnn_deit.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; DeiT's paper (arXiv 2012.12877) has no detector. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_levels_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.VisionTransformer",
        arch="deit_small",
        output_norm="layer",
        drop_path_rate=0.1,
        out_indices=(11,),
        init_cfg=dict(checkpoint="checkpoints/deit_small.safetensors"),
    ),
    neck=dict(in_channels=[384]),
)
