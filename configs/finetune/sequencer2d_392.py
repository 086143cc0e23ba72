"""Sequencer2D-L classifier at 392 pixels, ImageNet-1k, 30 epochs from 224 pixels.

    tools/convert.py weights://sequencer2d_l checkpoints/sequencer2d_l.safetensors --arch sequencer2d_l
    tools/train.py configs/finetune/sequencer2d_392.py

Hardware: 8 GPUs × 64 images, as published. Recipe: okojoalg/sequencer, README.md and train.py: AdamW
5e-5 without warmup, tested without a margin. Published: 84.6 top-1 (arXiv 2205.01972, abstract). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

train_pipeline = [
    dict(step, transforms=[[dict(crop, scale=392)] for [crop] in step.transforms])
    if step.type == "RandomChoice"
    else step
    for step in _base_.train_pipeline
]
test_pipeline = [
    dict(step, scale=392)
    if step.type == "ResizeEdge"
    else dict(step, crop_size=392)
    if step.type == "CenterCrop"
    else step
    for step in _base_.test_pipeline
]
model = dict(
    arch="sequencer2d_l_392",
    backbone=dict(drop_path_rate=0.4),
    init_cfg=dict(type="mixtransfer.PretrainedClassifier", checkpoint="checkpoints/sequencer2d_l.safetensors"),
)
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=1e-8))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=0)]
train_cfg = dict(max_epochs=30)
