"""Swin-T classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/swin.py

Hardware: 8 GPUs × 128 images, as published. Recipe: microsoft/Swin-Transformer (arXiv 2103.14030): AdamW 1e-3 at batch
1024, 20 epochs warmup. Published: 81.2 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="swin_tiny",
    backbone=dict(drop_path_rate=0.2),
)

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=20),
]
