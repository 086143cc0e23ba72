"""Semantic FPN, RegionViT-S+ (windows of 14), ADE20K 512×512.

    tools/convert.py regionvit_small_w14.pth checkpoints/regionvit_small_w14.safetensors --arch regionvit_small_w14
    tools/train.py configs/seg/semantic_fpn_regionvit.py

Hardware: 8 GPUs × 2 images. Recipe: ours after Twins' Semantic FPN (AdamW 1e-4, 80k iterations), the paper's settings
being unpublished. Published: 45.3 mIoU (cited by others for RegionViT-S+; not confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/semantic_fpn_40k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.RegionViT",
        arch="regionvit_small_w14",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/regionvit_small_w14.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=80000)]
