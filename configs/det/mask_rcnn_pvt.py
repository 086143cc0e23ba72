"""Mask R-CNN, PVT-Tiny, COCO, 12 epochs.

    tools/convert.py weights://pvt_tiny checkpoints/pvt_tiny.safetensors --arch pvt_tiny
    tools/train.py configs/det/mask_rcnn_pvt.py

Hardware: 8 GPUs × 2 images, as published. Recipe: whai362/PVT, detection/configs/mask_rcnn_pvt_t_fpn_1x_coco.py: AdamW
2e-4, everything decayed. Published: 36.7 box AP, 35.1 mask AP (there, README). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_1x.py"

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

optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=dict(decay_norms=True))

# Other sizes (--arch) as their published files have them.
sizes = dict(pvt_small=dict(), pvt_medium=dict(), pvt_large=dict(lr=2e-4 / 1.4, batch=1, total=8))
