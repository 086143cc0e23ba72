"""PyramidTNT-Ti classifier, 192 pixels, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/pyramid_tnt.py

Hardware: 8 GPUs × 128 images, as published. Recipe: huawei-noah/Efficient-AI-Backbones, tnt_pytorch/readme.md and
train.py (arXiv 2201.00978): TNT's with 20 epochs warmup. Published: 75.2 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

train_pipeline = [
    dict(step, transforms=[[dict(crop, scale=192)] for [crop] in step.transforms])
    if step.type == "RandomChoice"
    else step
    for step in _base_.train_pipeline
]
test_pipeline = [
    dict(step, scale=213)
    if step.type == "ResizeEdge"
    else dict(step, crop_size=192)
    if step.type == "CenterCrop"
    else step
    for step in _base_.test_pipeline
]

# Images are scaled to [-1, 1].
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
model = dict(
    arch="pyramid_tnt_tiny",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline), sampler=dict(type="RepeatAugSampler"))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=20, end=300),
]
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.99996)]

# The readme's command is that of S, at 256 pixels.
sizes = dict(pyramid_tnt_small=dict())
