"""Mask R-CNN, CMT-S, COCO, 12 epochs.

    tools/convert.py weights://cmt_s checkpoints/cmt_s.safetensors --arch cmt_s
    tools/train.py configs/det/mask_rcnn_cmt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, PVT's (whai362/PVT, detection/configs/mask_rcnn_pvt_t_fpn_1x_coco.py) at 1e-4
with the drop path of pretraining; the paper's detectors have no code. Published: 44.6 box AP, 40.7 mask AP (arXiv
2107.06263; not confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.CMT",
        arch="cmt_s",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/cmt_s.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(decay_norms=True))
