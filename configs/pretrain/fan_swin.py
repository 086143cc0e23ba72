"""FAN-Swin-T classifier, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/fan_swin.py

Hardware: 32 GPUs × 32 images; the published script takes 32 images a GPU and any number of nodes. Recipe: NVlabs/FAN,
scripts/fan_swin/fan_swin_tiny.sh, main.py and models/swin_utils.py (arXiv 2204.12451): AdamW 5e-4 behind 5 epochs
warmup, 10 epochs at the lowest rate, averaged weights. No score is in the code. Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

# A share of 0.9 in the middle: int(224 / 0.9).
test_pipeline = [dict(step, scale=248) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline]

model = dict(
    arch="fan_swin_tiny",
    backbone=dict(drop_path_rate=0.3),
)
train_dataloader = dict(batch_size=32)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=2e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=5, end=300),
]
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.99992)]

# Other sizes (--arch) as their published scripts have them, on 32 GPUs as well.
sizes = dict(
    fan_swin_small=dict(),
    fan_swin_base=dict(drop_path=0.2, lr=2e-3, start=5e-4, warmup=10, batch=16, total=512),
    fan_swin_large=dict(drop_path=0.2, lr=1e-3, start=1e-3, batch=16, total=512),
)
