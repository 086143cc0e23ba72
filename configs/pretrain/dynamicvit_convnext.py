"""Dynamic spatial sparsification of ConvNeXt-T: 70, 50 and 30 % of the third stage slow, ImageNet-1k, 120 epochs.

    tools/train.py configs/pretrain/dynamicvit_convnext.py

Starts from, and is taught by, facebookresearch/ConvNeXt's ``convnext_tiny_1k_224_ema.pth``, put beside the data.
Hardware: 32 GPUs × 128 images, as published, or 8 that accumulate 4 steps. Recipe: raoyongming/DynamicViT (README.md,
``main.py``, ``optim_factory.py``; arXiv 2207.01580): AdamW 4e-3 at batch 4096, ConvNeXt at a fifth of it, 20 epochs
warmup. Published: 81.6 top-1 at 3.6 GFLOPs (there, README); ConvNeXt-T has 82.1 at 4.5. Not reproduced yet.
"""

_base_ = "./dynamicvit.py"

model = dict(
    arch="dynamicvit_convnext_t_07",
    backbone=dict(drop_path_rate=0.2),
    teacher=dict(checkpoint="data/convnext_tiny_1k_224_ema.pth"),
    ratio_weight=10.0,
)

optim_wrapper = dict(optimizer=dict(lr=4e-3), paramwise_cfg=dict(pretrained_lr_mult=0.2))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=2.5e-4, by_epoch=True, begin=20, end=120, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=120)
auto_scale_lr = dict(base_batch_size=4096)

# Other sizes (--arch) as the README has them.
sizes = dict(
    dynamicvit_convnext_s_07={"model.teacher.checkpoint": "data/convnext_small_1k_224_ema.pth"},
    dynamicvit_convnext_b_07={"drop_path": 0.5, "model.teacher.checkpoint": "data/convnext_base_1k_224_ema.pth"},
)
