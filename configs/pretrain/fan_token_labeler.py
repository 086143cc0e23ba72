"""FAN-T-Hybrid as a labeler of tokens, the first phase of STL, ImageNet-1k, 360 epochs.

    tools/train.py configs/pretrain/fan_token_labeler.py

Hardware: 8 GPUs × 128 images, as published. Recipe: NVlabs/STL, scripts/fan_token_labeler/fan_tiny_tl.sh (arXiv
2401.03844): FAN's with AdamW 2e-3 at batch 1024, 350 epochs and 10 at the lowest rate, averaged weights. Published: the
labeler itself has no printed accuracy; of its students configs/pretrain/fan_token.py has one. Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

train_pipeline = [
    dict(step, erase_prob=0.3) if step.type == "RandomErasing" else step for step in _base_.train_pipeline
]
test_pipeline = [dict(step, scale=224) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline]

model = dict(
    type="mixtransfer.TokenLabelingClassifier",
    arch="fan_hybrid_tiny_token",
    backbone=dict(drop_path_rate=0.05),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=5, end=350),
]
train_cfg = dict(max_epochs=360)
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.99992)]

# Other sizes (--arch) as their published scripts have them; B and L ran on an unpublished number of machines.
sizes = dict(
    fan_hybrid_small_token=dict(drop_path=0.25),
    fan_hybrid_base_token=dict(drop_path=0.35, lr=4e-3, start=2.5e-4, warmup=10, batch=64),
    fan_hybrid_large_token=dict(drop_path=0.45, lr=4e-3, start=2.5e-4, warmup=10, batch=64),
)
