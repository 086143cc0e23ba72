"""Semantic FPN, PVT-Tiny, ADE20K 512×512.

    tools/convert.py weights://pvt_tiny checkpoints/pvt_tiny.safetensors --arch pvt_tiny
    tools/train.py configs/seg/semantic_fpn_pvt.py

Hardware: 8 GPUs × 4 images, as published. Recipe: whai362/PVT,
segmentation/configs/sem_fpn/PVT/fpn_pvt_t_ade20k_40k.py: AdamW 2e-4, 40k iterations. Published: 36.6 mIoU (there,
README), 35.7 in the paper (arXiv 2102.12122). Not reproduced yet.
"""

_base_ = "../_base_/semantic_fpn_40k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.PVT",
        arch="pvt_tiny",
        drop_path_rate=0.1,
        class_token=False,
        init_cfg=dict(checkpoint="checkpoints/pvt_tiny.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

# Other sizes (--arch) as their published files have them.
sizes = dict(pvt_small=dict(), pvt_medium=dict(), pvt_large=dict())
