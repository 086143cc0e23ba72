"""DynamicViT from DeiT-S: 70, 49 and 34 % of the tokens left after three predictors, ImageNet-1k, 30 epochs.

    tools/train.py configs/pretrain/dynamicvit.py

Starts from, and is taught by, facebookresearch/deit's ``deit_small_patch16_224-cd65a155.pth``, put beside the data.
Hardware: 8 GPUs × 128 images, as published. Recipe: raoyongming/DynamicViT (README, ``main.py``, ``optim_factory.py``;
arXiv 2106.02034): AdamW 1e-3 at batch 1024 for the predictors and a hundredth of it for DeiT, which is held for 5
epochs; class token and positions stay. Published: 79.3 top-1 at 2.9 GFLOPs (there, README); DeiT-S has 79.8 at 4.6.
Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    type="mixtransfer.DynamicClassifier",
    arch="dynamicvit_deit_s_07",
    backbone=dict(drop_path_rate=0.0),
    teacher=dict(checkpoint="data/deit_small_patch16_224-cd65a155.pth"),
    ratio_weight=2.0,
    distill_weight=0.5,
)

optim_wrapper = dict(
    constructor="mixtransfer.DynamicOptimWrapperConstructor",
    paramwise_cfg=dict(pretrained_lr_mult=0.01),
)
# Shares of each group's own rate: 1e-6 is where 1e-3 ends.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-3, by_epoch=True, begin=5, end=30, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
custom_hooks = [
    dict(type="mixtransfer.HoldPretrainedHook", epochs=5),
    dict(type="mmpretrain.EMAHook", momentum=1e-4, evaluate_on_origin=True),
]

# DeiT-B as the README has it.
sizes = dict(
    dynamicvit_deit_b_07={
        "drop_path": 0.2,
        "model.ratio_weight": 5.0,
        "model.teacher.checkpoint": "data/deit_base_patch16_224-b5f2ef4d.pth",
    },
)
