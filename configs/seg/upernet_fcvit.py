"""UPerNet, FCViT-B12, ADE20K 512×512.

    tools/convert.py weights://fcvit_b12 checkpoints/fcvit_b12.safetensors --arch fcvit_b12
    tools/train.py configs/seg/upernet_fcvit.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2212.12552) has Semantic FPN, semantic_fpn_fcvit.py. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.FCViT",
        arch="fcvit_b12",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/fcvit_b12.safetensors"),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
