"""Semantic FPN, Sequencer2D-S, ADE20K 512×512.

    tools/convert.py weights://sequencer2d_s checkpoints/sequencer2d_s.safetensors --arch sequencer2d_s
    tools/train.py configs/seg/semantic_fpn_sequencer2d.py

Hardware: 8 GPUs × 4 images. Recipe: PVT's (whai362/PVT, segmentation/configs/sem_fpn/PVT/fpn_pvt_t_ade20k_40k.py) with
the drop path of pretraining; the paper's settings are not in its code. Published: 46.1 mIoU (arXiv 2205.01972,
appendix; not confirmed here). FPN joins the strides 7, 14, 14 and 14 as they are. Not reproduced yet.
"""

_base_ = "../_base_/semantic_fpn_40k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.Sequencer2D",
        arch="sequencer2d_s",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/sequencer2d_s.safetensors"),
    ),
    neck=dict(in_channels=[192, 384, 384, 384]),
    decode_head=dict(feature_strides=[7, 14, 14, 14]),
)
