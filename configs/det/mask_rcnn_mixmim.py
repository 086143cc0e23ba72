"""Mask R-CNN, MixMIM-B, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py mixmim_base.pth checkpoints/mixmim_base.safetensors --arch mixmim_base
    tools/train.py configs/det/mask_rcnn_mixmim.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with a layer-wise learning
rate, as its fine-tuning on ImageNet has. The paper (arXiv 2205.13137) has Mask R-CNN with settings that the code does
not hold. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.MixMIMEncoder",
        arch="mixmim_base",
        # What the published sizes would have at 512 pixels; the last two maps see the whole of any image.
        window=(16, 16, 32, 16),
        shift_windows=True,
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/mixmim_base.safetensors"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
