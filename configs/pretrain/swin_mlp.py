"""Swin-MLP-T (C24) classifier, 256 pixels, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/swin_mlp.py

Hardware: 8 GPUs × 128 images, as published. Recipe: microsoft/Swin-Transformer,
configs/swinmlp/swin_mlp_tiny_c24_patch4_window8_256.yaml and config.py: Swin's. Published: 79.4 top-1 (there, README).
Not reproduced yet.
"""

_base_ = "./swin.py"

train_pipeline = [dict(step, scale=256) if step.type == "RandomResizedCrop" else step for step in _base_.train_pipeline]
test_pipeline = [
    dict(step, scale=292)
    if step.type == "ResizeEdge"
    else dict(step, crop_size=256)
    if step.type == "CenterCrop"
    else step
    for step in _base_.test_pipeline
]

model = dict(
    arch="swin_mlp_tiny_c24_w8_256",
    backbone=dict(drop_path_rate=0.2),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Other sizes (--arch) as their published files have them.
sizes = dict(
    swin_mlp_tiny_c12_w8_256=dict(),
    swin_mlp_tiny_c6_w8_256=dict(),
    swin_mlp_base_w7_224=dict(drop_path=0.5),
)
