"""CMT-Ti classifier, 160 pixels, ImageNet-1k, 800 epochs.

    tools/train.py configs/pretrain/cmt.py

Hardware: 8 GPUs × 256 images, as published. Recipe: ggjy/CMT.pytorch, README.md, train.py and datasets.py (arXiv
2107.06263): DeiT's, AdamW 8e-4 for every 512 images, 20 epochs warmup. Published: 79.0 top-1 (there, README). The
published dropout of 0.1 before the head is left out. Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

train_pipeline = [dict(step, scale=160) if step.type == "RandomResizedCrop" else step for step in _base_.train_pipeline]
test_pipeline = [
    dict(step, scale=182)
    if step.type == "ResizeEdge"
    else dict(step, crop_size=160)
    if step.type == "CenterCrop"
    else step
    for step in _base_.test_pipeline
]

model = dict(
    arch="cmt_ti",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline), sampler=dict(type="RepeatAugSampler"))
auto_scale_lr = dict(base_batch_size=2048)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=8e-4 * 2048 / 512))
param_scheduler = [
    dict(type="LinearLR", start_factor=3e-4, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=20),
]
train_cfg = dict(max_epochs=800)

# Other sizes (--arch) as their published files have them.
sizes = dict(
    cmt_xs=dict(drop_path=0.08, weight_decay=0.04, lr=2.8e-3, start=1e-6 / 2.8e-3, last_lr=2e-5, epochs=400),
    cmt_s=dict(lr=1e-3, start=1e-4, batch=128, total=1024, epochs=300),
    cmt_b=dict(drop_path=0.25, lr=5e-4, start=2e-3, last_lr=2e-5, batch=64, total=512, epochs=300),
)
