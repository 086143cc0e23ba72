"""FCViT-tiny classifier, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/fcvit.py

Hardware: 8 GPUs × 128 images, as published. Recipe: ma-xu/FCViT, README and train.py (arXiv 2212.12552): AdamW 1e-3 at
batch 1024, 10 epochs at the lowest rate. Published: 74.9 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

test_pipeline = [dict(step, scale=248) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline]

model = dict(
    arch="fcvit_tiny",
    backbone=dict(drop_path_rate=0.1),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=5, end=300),
]

# Other sizes (--arch) as their published files have them.
sizes = dict(fcvit_b12=dict(), fcvit_b24=dict(), fcvit_b48=dict(drop_path=0.2))
