"""DeiT-B classifier at 384 pixels, ImageNet-1k, 30 epochs from 224 pixels.

    tools/convert.py deit_base_patch16_224-b5f2ef4d.pth checkpoints/deit_base.safetensors --arch deit_base
    tools/train.py configs/finetune/deit_384.py

Hardware: 16 GPUs × 32 images, as published. Recipe: facebookresearch/deit, README_deit.md and main.py (arXiv
2012.12877): AdamW at a constant 5e-6 behind 5 epochs warmup, each image three times an epoch; tested as Swin is, where
DeiT cuts the center of images resized to 438. Published: 82.9 top-1 (there, README_deit.md). Not reproduced yet.
"""

_base_ = "../_base_/finetune_384.py"

model = dict(
    arch="deit_base_384",
    backbone=dict(drop_path_rate=0.1),
    init_cfg=dict(checkpoint="checkpoints/deit_base.safetensors"),
)
train_dataloader = dict(batch_size=32, sampler=dict(type="RepeatAugSampler"))
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=5e-6))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.2, by_epoch=True, end=5, convert_to_iter_based=True),
]
