"""Mask R-CNN, DySwin-T, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py dynamic_swin-t.pth checkpoints/dynamicvit_swin_t_07.safetensors --arch dynamicvit_swin_t_07
    tools/train.py configs/det/mask_rcnn_dynamicvit_swin.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; the paper (arXiv 2207.01580) detects too, but publishes no code for it, and its scores were not read here.
In training both paths run everywhere and the decisions learn from the detector's losses alone; evaluation sends 70, 50
and 30 % of the third stage through the slow path. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.DynamicSwin",
        arch="dynamicvit_swin_t_07",
        output_norm="layer",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/dynamicvit_swin_t_07.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
