"""Cascade Mask R-CNN, HorNet-T (7×7), COCO, 36 epochs with multi-scale training and crops.

    tools/convert.py hornet_tiny_7x7.pth checkpoints/hornet_tiny_7x7.safetensors --arch hornet_tiny_7x7
    tools/train.py configs/det/cascade_mask_rcnn_hornet.py

Hardware: 8 GPUs × 2 images, as published. Recipe: raoyongming/HorNet, object_detection: AdamW 2e-4, layer-wise learning
rate. Published: 51.7 box AP, 44.8 mask AP (there, README). Not reproduced yet.
"""

_base_ = "../_base_/cascade_mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.HorNet",
        arch="hornet_tiny_7x7",
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint="checkpoints/hornet_tiny_7x7.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

# Published: 0.7 for every two blocks.
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_biases=False, layer_decay_rate=0.7**0.5))
