"""DeiT-B classifier at 384 pixels, ImageNet-1k, 30 epochs from 224 pixels.

    tools/convert.py weights://deit_base checkpoints/deit_base.safetensors --arch deit_base
    tools/train.py configs/finetune/deit_384.py

Hardware: 16 GPUs × 32 images, as published. Recipe: facebookresearch/deit, README_deit.md and main.py (arXiv
2012.12877): AdamW at a constant 5e-6 behind 5 epochs warmup, each image three times an epoch. Published: 82.9 top-1
(there, README_deit.md). Not reproduced yet.
"""

_base_ = "../_base_/finetune_384.py"

# Tested on the center of images resized to int(256 / 224 · 384).
center = [
    dict(type="ResizeEdge", scale=438, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=384),
]
test_pipeline = [part for step in _base_.test_pipeline for part in (center if step.type == "Resize" else [step])]

model = dict(
    arch="deit_base_384",
    backbone=dict(drop_path_rate=0.1),
    init_cfg=dict(checkpoint="checkpoints/deit_base.safetensors"),
)
train_dataloader = dict(batch_size=32, sampler=dict(type="RepeatAugSampler"))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=5e-6))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.2, by_epoch=True, end=5, convert_to_iter_based=True),
]
