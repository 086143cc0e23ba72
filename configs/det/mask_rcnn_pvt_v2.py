"""Mask R-CNN, PVTv2-B0, COCO, 12 epochs.

    tools/convert.py weights://pvt_v2_b0 checkpoints/pvt_v2_b0.safetensors --arch pvt_v2_b0
    tools/train.py configs/det/mask_rcnn_pvt_v2.py

Hardware: 8 GPUs × 2 images, as published. Recipe: whai362/PVT, detection/configs/mask_rcnn_pvt_v2_b0_fpn_1x_coco.py:
AdamW 2e-4, everything decayed. Published: 38.2 box AP, 36.2 mask AP (there, README). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.PVTv2",
        arch="pvt_v2_b0",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/pvt_v2_b0.safetensors"),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)

optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=dict(decay_norms=True))

# Other sizes (--arch) as their published files have them.
sizes = dict(
    pvt_v2_b1=dict(),
    pvt_v2_b2=dict(),
    pvt_v2_b2_li=dict(),
    pvt_v2_b3=dict(),
    pvt_v2_b4=dict(lr=2e-4 / 1.4, batch=1, total=8),
    pvt_v2_b5=dict(lr=2e-4 / 1.4, batch=1, total=8),
)
