"""Segmenter with a mask transformer, DeiT-S pretrained with TransMix, ADE20K 512×512.

    tools/convert.py deit_s_transmix.pth.tar checkpoints/deit_small_transmix.safetensors --arch deit_small
    tools/train.py configs/seg/segmenter_deit_transmix.py

Hardware: 8 GPUs × 1 image, as published. Recipe: mmseg's, as segmenter_deit.py; TransMix publishes no segmentation code
(arXiv 2111.09833). The paper prints a gain, whose number is not confirmed here. Not reproduced yet.
"""

_base_ = "./segmenter_deit.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="checkpoints/deit_small_transmix.safetensors")))
