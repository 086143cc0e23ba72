"""Swin-T classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/swin.py

Hardware: 8 GPUs × 128 images, as published. Recipe: microsoft/Swin-Transformer,
configs/swin/swin_tiny_patch4_window7_224.yaml and config.py (arXiv 2103.14030): AdamW 1e-3 at batch 1024, 20 epochs
warmup. Published: 81.2 top-1 (there, README). Not reproduced yet.
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

# Other sizes (--arch) as their published files have them.
sizes = dict(swin_tiny_c24=dict(), swin_small=dict(drop_path=0.3), swin_base=dict(drop_path=0.5))
