"""Swin-B classifier at 384 pixels in windows of 12, ImageNet-1k, 30 epochs from 224 pixels.

    tools/convert.py weights://swin_base checkpoints/swin_base.safetensors --arch swin_base
    tools/train.py configs/finetune/swin_384.py

Hardware: 8 GPUs × 128 images; published: 8 × 64, two steps accumulated. Recipe: microsoft/Swin-Transformer,
configs/swin/swin_base_patch4_window12_384_finetune.yaml and get_started.md (arXiv 2103.14030): AdamW 4e-5 at batch
1024, 5 epochs warmup. Published: 84.5 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/finetune_384.py"

model = dict(
    arch="swin_base_w12",
    backbone=dict(drop_path_rate=0.5),
    init_cfg=dict(checkpoint="checkpoints/swin_base.safetensors"),
)
optim_wrapper = dict(optimizer=dict(lr=4e-5), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=4e-7, by_epoch=True, begin=5),
]
