"""PosMLP-T classifier, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/posmlp.py

Hardware: 4 GPUs × 128 images, as published. Recipe: Zhicaiwww/PosMLP, config/PosMLP_T.yaml (arXiv 2207.07284): AdamW
2e-3 at batch 512, three operations of RandAugment, no erasing, averaged weights, 10 epochs at the lowest rate.
Published: 82.1 top-1 (there, README). The published dropout of 0.023 is left out. Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

train_pipeline = [
    dict(step, transforms=[[dict(crop, aspect_ratio_range=(0.67, 1.5))] for [crop] in step.transforms])
    if step.type == "RandomChoice"
    else dict(step, num_policies=3, magnitude_level=6, magnitude_std=1.0)
    if step.type == "RandAugment"
    else step
    for step in _base_.train_pipeline
    if step.type != "RandomErasing"
]
test_pipeline = [dict(step, scale=248) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline]

model = dict(
    arch="posmlp_t",
    backbone=dict(drop_path_rate=0.1),
    mixing=dict(mixup_alpha=0.5),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=512)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.067, eps=1e-5), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-3, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=10, end=300),
]
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.99992)]

# Other sizes (--arch) as their published files have them.
sizes = dict(posmlp_s=dict(lr=1e-3, start=1e-2, batch=60, total=240, epochs=300))
