"""RetinaNet, PVT-Tiny, COCO, 12 epochs.

    tools/convert.py weights://pvt_tiny checkpoints/pvt_tiny.safetensors --arch pvt_tiny
    tools/train.py configs/det/retinanet_pvt.py

Hardware: 8 GPUs × 2 images, as published. Recipe: whai362/PVT, detection/configs/retinanet_pvt_t_fpn_1x_coco.py: AdamW
1e-4. Published: 36.7 box AP (there, README). Not reproduced yet.
"""

_base_ = "../_base_/retinanet_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.PVT",
        arch="pvt_tiny",
        drop_path_rate=0.1,
        class_token=False,
        init_cfg=dict(checkpoint="checkpoints/pvt_tiny.safetensors"),
    ),
    neck=dict(in_channels=[128, 320, 512]),
)

# Other sizes (--arch) as their published files have them.
sizes = dict(pvt_small=dict(), pvt_medium=dict(), pvt_large=dict())
