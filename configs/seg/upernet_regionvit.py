"""UPerNet, RegionViT-S, ADE20K 512×512.

    tools/convert.py weights://regionvit_small checkpoints/regionvit_small.safetensors --arch regionvit_small
    tools/train.py configs/seg/upernet_regionvit.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of its published detectors; the paper (arXiv 2106.02689) has Semantic FPN, semantic_fpn_regionvit.py. Not reproduced
yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.RegionViT",
        arch="regionvit_small",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/regionvit_small.safetensors"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
