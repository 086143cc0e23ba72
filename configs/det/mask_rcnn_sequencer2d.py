"""Mask R-CNN, Sequencer2D-S, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://sequencer2d_s checkpoints/sequencer2d_s.safetensors --arch sequencer2d_s
    tools/train.py configs/det/mask_rcnn_sequencer2d.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; the code has no detector. The last map, of stride 14, is rescaled to strides 4 to 64. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_levels_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.Sequencer2D",
        arch="sequencer2d_s",
        output_norm="layer",
        drop_path_rate=0.1,
        out_indices=(3,),
        init_cfg=dict(checkpoint="checkpoints/sequencer2d_s.safetensors"),
    ),
    neck=dict(in_channels=[384], scales=[14 / 4, 14 / 8, 14 / 16, 14 / 32, 14 / 64]),
)
