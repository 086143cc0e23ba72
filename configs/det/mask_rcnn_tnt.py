"""Mask R-CNN, TNT-S, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py tnt_s_81.5.pth.tar checkpoints/tnt_small.safetensors --arch tnt_small
    tools/train.py configs/det/mask_rcnn_tnt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; TNT's paper (arXiv 2103.00112) has DETR and Faster R-CNN, without code. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_levels_1x.py"

model = dict(
    # Pretrained on images scaled to [-1, 1].
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="mixtransfer.TNT",
        arch="tnt_small",
        output_norm="layer",
        drop_path_rate=0.1,
        out_indices=(11,),
        init_cfg=dict(checkpoint="checkpoints/tnt_small.safetensors"),
    ),
    neck=dict(in_channels=[384]),
)
