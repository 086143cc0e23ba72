"""UPerNet, CMT-S, ADE20K 512×512.

    tools/convert.py weights://cmt_s checkpoints/cmt_s.safetensors --arch cmt_s
    tools/train.py configs/seg/upernet_cmt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2107.06263) has no segmentor. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.CMT",
        arch="cmt_s",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/cmt_s.safetensors"),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
