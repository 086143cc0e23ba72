"""Cascade Mask R-CNN, HorNet-T (7×7), COCO, 36 epochs with multi-scale training and crops.

    tools/convert.py weights://hornet_tiny_7x7 checkpoints/hornet_tiny_7x7.safetensors --arch hornet_tiny_7x7
    tools/train.py configs/det/cascade_mask_rcnn_hornet.py

Hardware: 8 GPUs × 2 images, as published. Recipe: raoyongming/HorNet,
object_detection/configs/hornet/cascade_mask_rcnn_hornet_tiny_7x7_3x_coco_in1k.py and
mmcv_custom/layer_decay_optimizer_constructor.py: AdamW 2e-4, learning rates by layer. Published: 51.7 box AP, 44.8 mask
AP, 80 M parameters, 730 G MACs (there, README). Not reproduced yet.
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

# As published: one layer a stage, but pairs of blocks in the third; the downsampling before it counts with them.
layers_above = {
    **{"downsample_layers.0": 13, "stages.0": 12, "downsample_layers.1": 11, "stages.1": 11, "downsample_layers.2": 10},
    **{f"stages.2.{block}": 10 - block // 2 for block in range(18)},
    **{"downsample_layers.3": 1, "stages.3": 1},
    **{f"norm{stage}": 0 for stage in range(4)},
}
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(decay_biases=False, layer_decay_rate=0.7, layers_above=layers_above),
)

# Other sizes (--arch) as their published files have them.
sizes = dict(
    hornet_tiny_gf=dict(),
    hornet_small_7x7=dict(drop_path=0.6),
    hornet_small_gf=dict(drop_path=0.6),
    hornet_base_7x7=dict(drop_path=0.7, layer_decay=0.8),
    hornet_base_gf=dict(drop_path=0.7, layer_decay=0.8),
    # From ImageNet-22k; global filters as at 384 pixels.
    hornet_large_7x7=dict(drop_path=0.7, lr=1e-4),
    hornet_large_gf=dict(drop_path=0.7, lr=1e-4, img_size=384),
)
