"""Mask R-CNN, MixMIM-B, COCO, 100 epochs of large-scale jitter at 1024×1024.

    tools/convert.py mixmim_base.pth checkpoints/mixmim_base.safetensors --arch mixmim_base
    tools/train.py configs/det/mask_rcnn_mixmim_lsj.py

Hardware: 64 GPUs × 1 image. Recipe: ours after ViTDet's (mask_rcnn_deit_vitdet.py) with FPN, as the paper's settings
are in no code; a rate that falls by 0.85 a layer over 24 blocks and drop path 0.3. Published: about 52 box AP (MixMAE,
arXiv 2205.13137, from memory; not confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_lsj_100e.py"

model = dict(
    backbone=dict(
        type="mixtransfer.MixMIMEncoder",
        arch="mixmim_base",
        # What the published sizes would have at 512 pixels; the last two maps see the whole of any image.
        window=(16, 16, 32, 16),
        shift_windows=True,
        output_norm="layer",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="checkpoints/mixmim_base.safetensors"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05), paramwise_cfg=dict(layer_decay_rate=0.85))
