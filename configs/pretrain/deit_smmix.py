"""DeiT-S classifier with SMMix, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/deit_smmix.py

Hardware: 4 GPUs × 256 images, as published. Recipe: ChenMnZ/SMMix, script/train.sh and main.py (arXiv 2212.12977):
DeiT's without random erasing, each image once an epoch. Published: 81.1 top-1, against 79.8 of DeiT (there, README).
Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

train_pipeline = [step for step in _base_.train_pipeline if step.type != "RandomErasing"]

model = dict(
    arch="deit_small",
    backbone=dict(drop_path_rate=0.1),
    mixing=dict(_delete_=True, type="mixtransfer.SMMix", alpha=0.8, switch_prob=0.5),
)
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
