"""Mask R-CNN, PVT-Tiny pretrained with SMMix, COCO, 12 epochs.

    tools/convert.py weights://pvt_tiny_smmix checkpoints/pvt_tiny_smmix.safetensors --arch pvt_tiny
    tools/train.py configs/det/mask_rcnn_pvt_smmix.py

Hardware: 8 GPUs × 2 images, as published. Recipe: PVT's, as mask_rcnn_pvt.py; SMMix publishes no detection code (arXiv
2212.12977). The paper prints a gain, whose number is not confirmed here. Not reproduced yet.
"""

_base_ = "./mask_rcnn_pvt.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="checkpoints/pvt_tiny_smmix.safetensors")))
