"""Mask R-CNN, CaiT-XXS24, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py XXS24_224.pth checkpoints/cait_xxs24.safetensors --arch cait_xxs24
    tools/train.py configs/det/mask_rcnn_cait.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; CaiT's paper (arXiv 2103.17239) has no detector. Depths of 36 and 48 need model.backbone.out_indices=(35,)
and (47,). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_levels_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.CaiT",
        arch="cait_xxs24",
        output_norm="layer",
        drop_path_rate=0.05,
        out_indices=(23,),
        init_cfg=dict(checkpoint="checkpoints/cait_xxs24.safetensors"),
    ),
    neck=dict(in_channels=[192]),
)
