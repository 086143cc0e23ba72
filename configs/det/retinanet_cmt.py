"""RetinaNet, CMT-S, COCO, 12 epochs.

    tools/convert.py weights://cmt_s checkpoints/cmt_s.safetensors --arch cmt_s
    tools/train.py configs/det/retinanet_cmt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, PVT's (whai362/PVT, detection/configs/retinanet_pvt_t_fpn_1x_coco.py) with
the drop path of pretraining; the paper's detectors have no code. Published: 44.3 box AP (arXiv 2107.06263, abstract).
Not reproduced yet.
"""

_base_ = "../_base_/retinanet_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.CMT",
        arch="cmt_s",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/cmt_s.safetensors"),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
