"""FAN-T-Hybrid classifier, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/fan.py

Hardware: 32 GPUs × 32 images, as published. Recipe: NVlabs/FAN (arXiv 2204.12451): AdamW 1e-3 at batch 1024, 10 epochs
at the lowest rate, averaged weights. Published: 80.1 top-1, 57.4 on ImageNet-C (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

train_pipeline = _base_.train_pipeline
train_pipeline[4]["erase_prob"] = 0.3

model = dict(
    arch="fan_hybrid_tiny",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(max_epochs=310)
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.99992)]
