"""PVT-Tiny classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/pvt.py

Hardware: 8 GPUs × 128 images, as published. Recipe: whai362/PVT, classification/configs/pvt/pvt_tiny.py and
classification/main.py: DeiT's. Published: 75.1 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="pvt_tiny",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(sampler=dict(type="RepeatAugSampler"))

# Other sizes (--arch) as their published files have them.
sizes = dict(pvt_small=dict(), pvt_medium=dict(drop_path=0.3, clip=1.0), pvt_large=dict(drop_path=0.3, clip=1.0))
