"""Semantic FPN, PVTv2-B0, ADE20K 512×512.

    tools/convert.py weights://pvt_v2_b0 checkpoints/pvt_v2_b0.safetensors --arch pvt_v2_b0
    tools/train.py configs/seg/semantic_fpn_pvt_v2.py

Hardware: 8 GPUs × 4 images. Recipe: PVT's (whai362/PVT, segmentation/configs/sem_fpn/PVT/fpn_pvt_t_ade20k_40k.py); the
code has none for PVTv2. Published: 37.2 mIoU (arXiv 2106.13797; not confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/semantic_fpn_40k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.PVTv2",
        arch="pvt_v2_b0",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/pvt_v2_b0.safetensors"),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
