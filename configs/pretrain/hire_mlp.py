"""Hire-MLP-T classifier, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/hire_mlp.py

Hardware: 8 GPUs × 256 images, as published. Recipe: ggjy/Hire-Wave-MLP.pytorch, README.md and train.py (arXiv
2108.13341): DeiT's, AdamW 2e-3 at batch 2048, 20 epochs warmup, no drop path, 10 epochs at the lowest rate. Published:
79.7 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="hire_mlp_tiny",
)
train_dataloader = dict(batch_size=256, sampler=dict(type="RepeatAugSampler"))
auto_scale_lr = dict(base_batch_size=2048)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=20, end=300),
]
train_cfg = dict(max_epochs=310)

# Other sizes (--arch) as their published files have them.
sizes = dict(hire_mlp_base=dict(drop_path=0.2, lr=1e-3, start=1e-3, batch=128, total=1024))
