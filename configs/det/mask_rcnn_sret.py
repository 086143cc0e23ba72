"""Mask R-CNN, SReT-T, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://sret_tiny checkpoints/sret_tiny.safetensors --arch sret_tiny
    tools/train.py configs/det/mask_rcnn_sret.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; the paper (arXiv 2111.05297) has no dense task. There are three maps, of strides 8, 16 and 32. Not
reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.SReT",
        arch="sret_tiny",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/sret_tiny.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 256]),
    # Strides start at 8: anchors of scale 4 have the usual sides, 32 to 512, and objects below 224 go to stride 8.
    rpn_head=dict(anchor_generator=dict(scales=[4], strides=[8, 16, 32, 64, 128])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[8, 16, 32], finest_scale=112),
        mask_roi_extractor=dict(featmap_strides=[8, 16, 32], finest_scale=112),
    ),
)
