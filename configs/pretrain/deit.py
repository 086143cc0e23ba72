"""DeiT-T classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/deit.py

Hardware: 8 GPUs × 128 images; published: 4 × 256. Recipe: facebookresearch/deit, README_deit.md and main.py (arXiv
2012.12877): AdamW 1e-3 at batch 1024, each image three times an epoch. Published: 72.2 top-1 (there, README). Not
reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="deit_tiny",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(sampler=dict(type="RepeatAugSampler"))

# Other sizes (--arch) as their published files have them.
sizes = dict(deit_small=dict(), deit_base=dict())
