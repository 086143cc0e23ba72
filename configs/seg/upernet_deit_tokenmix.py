"""UPerNet, DeiT-S pretrained with TokenMix, ADE20K 512×512.

    tools/convert.py tokenmix_deit_small.pth checkpoints/deit_small_tokenmix.safetensors --arch deit_small
    tools/train.py configs/seg/upernet_deit_tokenmix.py

Hardware: 8 GPUs × 2 images, as published. Recipe: mmseg's for DeiT, as upernet_deit.py; TokenMix publishes no
segmentation code (arXiv 2207.08409). The paper prints a gain, whose number is not confirmed here. Not reproduced yet.
"""

_base_ = "./upernet_deit.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="checkpoints/deit_small_tokenmix.safetensors")))
