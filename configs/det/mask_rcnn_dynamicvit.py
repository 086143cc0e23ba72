"""Mask R-CNN, DynamicViT from DeiT-S, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py dynamicvit_deit-s.pth checkpoints/dynamicvit_deit_s_07.safetensors --arch dynamicvit_deit_s_07
    tools/train.py configs/det/mask_rcnn_dynamicvit.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) without drop path, as
pretrained; no dense code or recipe is published for DynamicViT (arXiv 2106.02034). In training every token goes on and
the decisions, which mask the attention, learn from the detector's losses alone; evaluation keeps 70, 49 and 34 % of the
tokens, and a dropped one holds its last value in the map. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_levels_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.DynamicViT",
        arch="dynamicvit_deit_s_07",
        output_norm="layer",
        out_indices=(11,),
        init_cfg=dict(checkpoint="checkpoints/dynamicvit_deit_s_07.safetensors"),
    ),
    neck=dict(in_channels=[384]),
)
