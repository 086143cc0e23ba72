"""Sequencer2D-S classifier, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/sequencer2d.py

Hardware: 8 GPUs × 256 images, as published. Recipe: okojoalg/sequencer, README and train.py (arXiv 2205.01972): AdamW
2e-3 at batch 2048, 20 epochs warmup, 10 epochs at the lowest rate. The code has the command for this size only: rates
and drop path of the others are the paper's, from memory. Published: 82.3 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

model = dict(
    arch="sequencer2d_s",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(base_batch_size=2048)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=20, end=300),
]

# Other sizes (--arch), from memory of the paper's appendix. The wider one has neither values nor a score there.
sizes = dict(
    sequencer2d_m=dict(drop_path=0.2, lr=1.5e-3, batch=192, total=1536),
    sequencer2d_l=dict(drop_path=0.4, lr=1e-3, batch=128, total=1024),
)
