"""UPerNet, CaiT-XXS24, ADE20K 512×512.

    tools/convert.py XXS24_224.pth checkpoints/cait_xxs24.safetensors --arch cait_xxs24
    tools/train.py configs/seg/upernet_cait.py

Hardware: 8 GPUs × 2 images. Recipe: ours, mmseg's for DeiT (upernet_deit.py) with the drop path of pretraining; CaiT's
paper (arXiv 2103.17239) has no segmentor. Not reproduced yet.
"""

_base_ = "../_base_/upernet_levels_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.CaiT",
        arch="cait_xxs24",
        output_norm="layer",
        drop_path_rate=0.05,
        init_cfg=dict(checkpoint="checkpoints/cait_xxs24.safetensors"),
    ),
    neck=dict(in_channels=[192, 192, 192, 192], out_channels=192),
    decode_head=dict(in_channels=[192, 192, 192, 192]),
    auxiliary_head=dict(in_channels=192),
)
