"""PVTv2-B0 classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/pvt_v2.py

Hardware: 8 GPUs × 128 images, as published. Recipe: whai362/PVT, classification/configs/pvt_v2/pvt_v2_b0.py and
classification/main.py: DeiT's. Published: 70.5 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="pvt_v2_b0",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(sampler=dict(type="RepeatAugSampler"))

# Other sizes (--arch) as their published files have them.
sizes = dict(
    pvt_v2_b1=dict(),
    pvt_v2_b2=dict(),
    pvt_v2_b2_li=dict(),
    pvt_v2_b3=dict(drop_path=0.3, clip=1.0),
    pvt_v2_b4=dict(drop_path=0.3, clip=1.0),
    pvt_v2_b5=dict(drop_path=0.3, clip=1.0),
)
