"""Sequencer2D-S classifier, CIFAR-10, 210 epochs from ImageNet-1k.

    tools/convert.py weights://sequencer2d_s checkpoints/sequencer2d_s.safetensors --arch sequencer2d_s
    tools/train.py configs/finetune/sequencer2d_cifar10.py

Hardware: 4 GPUs × 128 images, as published. Recipe: okojoalg/sequencer, README.md and train.py (arXiv 2205.01972):
AdamW 1e-4, 5 epochs warmup, gradients clipped to norm 1, no erasing. The paper prints a score, which is not confirmed
here. Not reproduced yet.
"""

_base_ = "../_base_/finetune_cifar10.py"

train_pipeline = [step for step in _base_.train_pipeline if step.type != "RandomErasing"]
model = dict(
    arch="sequencer2d_s",
    backbone=dict(drop_path_rate=0.1, init_cfg=dict(checkpoint="checkpoints/sequencer2d_s.safetensors")),
)
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=5, end=200),
]
train_cfg = dict(max_epochs=210)
