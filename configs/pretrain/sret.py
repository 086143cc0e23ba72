"""SReT-T classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/sret.py

Hardware: 8 GPUs × 128 images. Recipe: DeiT's, AdamW 1e-3 for every 512 images and 30 epochs warmup, as szq0214/SReT
recommends (README; arXiv 2111.05297); its own script is not published. Published: 76.0 top-1 (there, README). Not
reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="sret_tiny",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(sampler=dict(type="RepeatAugSampler"))

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, by_epoch=True, end=30, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=30),
]
