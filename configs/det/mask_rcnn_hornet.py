"""Mask R-CNN, HorNet-S (7×7), COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://hornet_small_7x7 checkpoints/hornet_small_7x7.safetensors --arch hornet_small_7x7
    tools/train.py configs/det/mask_rcnn_hornet.py

Hardware: 8 GPUs × 2 images, as published. Recipe: raoyongming/HorNet,
object_detection/configs/horfpn/fpn_mask_rcnn_hornet_small_7x7_1x_coco_in1k.py, the baseline with FPN: AdamW 1e-4,
learning rates by layer. No score is published with the code. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.HorNet",
        arch="hornet_small_7x7",
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint="checkpoints/hornet_small_7x7.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

# The published file counts 6 layers but numbers them up to 12, so the last stage learns 0.95^-5 times as fast as the
# heads. Otherwise these are the layers of cascade_mask_rcnn_hornet.py.
layers_above = {
    **{"downsample_layers.0": 7, "stages.0": 6, "downsample_layers.1": 5, "stages.1": 5, "downsample_layers.2": 4},
    **{f"stages.2.{block}": 4 - block // 2 for block in range(18)},
    **{"downsample_layers.3": -5, "stages.3": -5},
    **{f"norm{stage}": 0 for stage in range(4)},
}
optim_wrapper = dict(paramwise_cfg=dict(decay_biases=False, layer_decay_rate=0.95, layers_above=layers_above))
