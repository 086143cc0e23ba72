"""Mask R-CNN, FCViT-B12, COCO, 12 epochs.

    tools/convert.py weights://fcvit_b12 checkpoints/fcvit_b12.safetensors --arch fcvit_b12
    tools/train.py configs/det/mask_rcnn_fcvit.py

Hardware: 8 GPUs × 4 images, as published. Recipe: ma-xu/FCViT, detection/configs/mask_rcnn_fcvit_b12_fpn_1x_coco.py:
AdamW 2e-4, everything decayed, no drop path. Published: 42.3 box AP, 38.6 mask AP (there, README). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.FCViT",
        arch="fcvit_b12",
        init_cfg=dict(checkpoint="checkpoints/fcvit_b12.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=dict(undecayed=[]))

# Other sizes (--arch) as their published files have them.
sizes = dict(fcvit_b24=dict())
