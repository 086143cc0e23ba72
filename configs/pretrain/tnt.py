"""TNT-S classifier, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/tnt.py

Hardware: 8 GPUs × 128 images, as published. Recipe: huawei-noah/Efficient-AI-Backbones, tnt_pytorch/readme.md and
train.py (arXiv 2103.00112): DeiT's with 10 epochs at the lowest rate and averaged weights. Published: 81.5 top-1
(there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

test_pipeline = [dict(step, scale=248) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline]

# Images are scaled to [-1, 1].
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
model = dict(
    arch="tnt_small",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(sampler=dict(type="RepeatAugSampler"))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.99996)]
