"""Mask R-CNN, PyramidTNT-S, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py pyramid_tnt_small.pth checkpoints/pyramid_tnt_small.safetensors --arch pyramid_tnt_small
    tools/train.py configs/det/mask_rcnn_pyramid_tnt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining. Published: 43.4 box AP, 39.5 mask AP (arXiv 2201.00978; not confirmed here), without code or settings. Not
reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    # Pretrained on images scaled to [-1, 1].
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="mixtransfer.PyramidTNT",
        arch="pyramid_tnt_small",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/pyramid_tnt_small.safetensors"),
    ),
    neck=dict(in_channels=[128, 256, 512, 512]),
    # Strides start at 8: anchors of scale 4 have the usual sides, 32 to 512, and objects below 224 go to stride 8.
    rpn_head=dict(anchor_generator=dict(scales=[4], strides=[8, 16, 32, 64, 128])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[8, 16, 32, 64], finest_scale=112),
        mask_roi_extractor=dict(featmap_strides=[8, 16, 32, 64], finest_scale=112),
    ),
)
