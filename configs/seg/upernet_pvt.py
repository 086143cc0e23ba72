"""UPerNet, PVT-Tiny, ADE20K 512×512.

    tools/convert.py weights://pvt_tiny checkpoints/pvt_tiny.safetensors --arch pvt_tiny
    tools/train.py configs/seg/upernet_pvt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2102.12122) has Semantic FPN, semantic_fpn_pvt.py. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.PVT",
        arch="pvt_tiny",
        drop_path_rate=0.1,
        class_token=False,
        init_cfg=dict(checkpoint="checkpoints/pvt_tiny.safetensors"),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
