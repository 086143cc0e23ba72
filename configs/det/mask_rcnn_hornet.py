"""Mask R-CNN, HorNet-S (7×7), COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py hornet_small_7x7.pth checkpoints/hornet_small_7x7.safetensors --arch hornet_small_7x7
    tools/train.py configs/det/mask_rcnn_hornet.py

Hardware: 8 GPUs × 2 images, as published. Recipe: raoyongming/HorNet, object_detection/configs/horfpn, the baseline
with FPN: AdamW 1e-4, layer-wise learning rate. No score is published with the code. Not reproduced yet.
"""

_base_ = [
    "../_base_/models/mask_rcnn.py",
    "../_base_/datasets/coco_instance_crop.py",
    "../_base_/schedules/adamw_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(
        type="mixtransfer.HorNet",
        arch="hornet_small_7x7",
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint="checkpoints/hornet_small_7x7.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

# Published: 0.95 for every two blocks.
optim_wrapper = dict(paramwise_cfg=dict(decay_biases=False, layer_decay_rate=0.95**0.5))
