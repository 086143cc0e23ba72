"""PVTv2-B0 classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/pvt_v2.py

Hardware: 8 GPUs × 128 images, as published. Recipe: whai362/PVT, classification: DeiT's; sizes from B2 on clip
gradients to norm 1. Published: 70.5 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="pvt_v2_b0",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(sampler=dict(type="RepeatAugSampler"))
