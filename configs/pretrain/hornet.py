"""HorNet-T (7×7) classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/hornet.py

Hardware: 32 GPUs × 128 images, as published. Recipe: raoyongming/HorNet, TRAINING.md (arXiv 2207.14284): AdamW 4e-3 at
batch 4096, 20 epochs warmup, averaged weights. Published: 82.8 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="hornet_tiny_7x7",
    backbone=dict(drop_path_rate=0.2),
)
auto_scale_lr = dict(base_batch_size=4096)

optim_wrapper = dict(optimizer=dict(lr=4e-3), clip_grad=dict(max_norm=100.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=2.5e-4, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=20),
]
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.9999)]

# Other sizes (--arch) as their published files have them.
sizes = dict(
    hornet_tiny_gf=dict(clip=1.0),
    hornet_small_7x7=dict(drop_path=0.4, clip=5.0),
    hornet_small_gf=dict(drop_path=0.4, clip=1.0, magnitude=12),
    hornet_base_7x7=dict(drop_path=0.5, clip=5.0),
    hornet_base_gf=dict(drop_path=0.5, clip=1.0, magnitude=15),
)
