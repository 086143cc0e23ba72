"""Mask R-CNN, PVT-Small pretrained with TransMix, COCO, 12 epochs.

    tools/convert.py transmix_pvt_small.pth checkpoints/pvt_small_transmix.safetensors --arch pvt_small
    tools/train.py configs/det/mask_rcnn_pvt_transmix.py

Hardware: 8 GPUs × 2 images, as published. Recipe: PVT's, as mask_rcnn_pvt.py; TransMix publishes no detection code
(arXiv 2111.09833). The paper prints a gain over PVT-Small's 40.4 box AP, whose number is not confirmed here. Not
reproduced yet.
"""

_base_ = "./mask_rcnn_pvt.py"

model = dict(
    backbone=dict(arch="pvt_small", init_cfg=dict(checkpoint="checkpoints/pvt_small_transmix.safetensors")),
)
sizes = dict(_delete_=True, pvt_tiny=dict(), pvt_medium=dict(), pvt_large=dict(lr=2e-4 / 1.4, batch=1, total=8))
