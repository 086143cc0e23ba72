"""UPerNet, TNT-S, ADE20K 512×512.

    tools/convert.py tnt_s_81.5.pth.tar checkpoints/tnt_small.safetensors --arch tnt_small
    tools/train.py configs/seg/upernet_tnt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, mmseg's for DeiT (upernet_deit.py); TNT's paper (arXiv 2103.00112) segments
with Trans2Seg and publishes no code for it. Not reproduced yet.
"""

_base_ = "../_base_/upernet_levels_160k.py"

model = dict(
    # Pretrained on images scaled to [-1, 1].
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="mixtransfer.TNT",
        arch="tnt_small",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/tnt_small.safetensors"),
    ),
    neck=dict(in_channels=[384, 384, 384, 384], out_channels=384),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
