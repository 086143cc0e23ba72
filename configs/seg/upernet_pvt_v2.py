"""UPerNet, PVTv2-B0, ADE20K 512×512.

    tools/convert.py weights://pvt_v2_b0 checkpoints/pvt_v2_b0.safetensors --arch pvt_v2_b0
    tools/train.py configs/seg/upernet_pvt_v2.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2106.13797) has Semantic FPN, semantic_fpn_pvt_v2.py. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.PVTv2",
        arch="pvt_v2_b0",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/pvt_v2_b0.safetensors"),
    ),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160),
)
