"""Swin-B classifier from ImageNet-22k, ImageNet-1k, 30 epochs.

    tools/convert.py weights://swin_base_22k checkpoints/swin_base_22k.safetensors --arch swin_base
    tools/train.py configs/finetune/swin_22k.py

The head takes the rows of the 1000 classes, which microsoft/Swin-Transformer lists in data/map22kto1k.txt; put that
file beside the data. Hardware: 8 GPUs × 128 images; published: 8 × 64, by two. Recipe: microsoft/Swin-Transformer,
configs/swin/swin_base_patch4_window7_224_22kto1k_finetune.yaml and get_started.md (arXiv 2103.14030): AdamW 4e-5 at
batch 1024, 5 epochs warmup. Published: 85.2 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="swin_base",
    backbone=dict(drop_path_rate=0.2),
    init_cfg=dict(
        type="mixtransfer.PretrainedClassifier",
        checkpoint="checkpoints/swin_base_22k.safetensors",
        rows="data/map22kto1k.txt",
    ),
)
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=4e-7, by_epoch=True, begin=5),
]
train_cfg = dict(max_epochs=30)

# Other sizes (--arch) as their published files have them.
sizes = dict(swin_tiny=dict(drop_path=0.1), swin_small=dict(), swin_large=dict())
