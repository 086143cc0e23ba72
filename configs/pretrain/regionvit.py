"""RegionViT-Ti classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/regionvit.py

Hardware: 8 GPUs × 256 images, as published. Recipe: IBM/RegionViT, README.md and main.py (arXiv 2106.02689): DeiT's,
AdamW 2e-3 at batch 2048. Published: 80.4 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="regionvit_tiny",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(batch_size=256, sampler=dict(type="RepeatAugSampler"))
auto_scale_lr = dict(base_batch_size=2048)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=5),
]
