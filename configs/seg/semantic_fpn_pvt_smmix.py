"""Semantic FPN, PVT-Tiny pretrained with SMMix, ADE20K 512×512.

    tools/convert.py weights://pvt_tiny_smmix checkpoints/pvt_tiny_smmix.safetensors --arch pvt_tiny
    tools/train.py configs/seg/semantic_fpn_pvt_smmix.py

Hardware: 8 GPUs × 4 images, as published. Recipe: PVT's, as semantic_fpn_pvt.py; SMMix publishes no segmentation code
(arXiv 2212.12977). The paper prints a gain, whose number is not confirmed here. Not reproduced yet.
"""

_base_ = "./semantic_fpn_pvt.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="checkpoints/pvt_tiny_smmix.safetensors")))
