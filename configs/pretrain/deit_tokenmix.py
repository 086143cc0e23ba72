"""DeiT-S classifier with TokenMix, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/deit_tokenmix.py

The labels follow a frozen PVTv2-B2, whai362/PVT's ``pvt_v2_b2.pth``, put beside the data; the published ones follow
maps that an NFNet-F6 made beforehand. Hardware: 8 GPUs × 128 images, as published. Recipe: Sense-X/TokenMix,
exp/deit_small/run.sh (arXiv 2207.08409): DeiT's with a binary loss, 10 epochs at the lowest rate, averaged weights,
each image once an epoch. Published: 80.8 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="deit_small",
    backbone=dict(drop_path_rate=0.1),
    mixing=dict(_delete_=True, type="mixtransfer.TokenMix", mixup_alpha=0.8, ratio=0.5, extra=14, switch_prob=0.5),
    cell_size=16,
    teacher=dict(arch="pvt_v2_b2", checkpoint="data/pvt_v2_b2.pth"),
    binary_loss=True,
)

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(max_epochs=310)
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.99996)]
