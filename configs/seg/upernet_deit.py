"""UPerNet, DeiT-S, ADE20K 512×512.

    tools/convert.py weights://deit_small checkpoints/deit_small.safetensors --arch deit_small
    tools/train.py configs/seg/upernet_deit.py

Hardware: 8 GPUs × 2 images, as published. Recipe: mmseg's for DeiT (open-mmlab/mmsegmentation,
configs/vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py): a neck makes strides 4 to 32 of the maps of four
blocks; 160k iterations. Published: 43.82 mIoU (there, README). Not reproduced yet.
"""

_base_ = "../_base_/upernet_levels_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.VisionTransformer",
        arch="deit_small",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/deit_small.safetensors"),
    ),
    neck=dict(in_channels=[384, 384, 384, 384], out_channels=384),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)

# Other sizes (--arch) as mmseg's files have them.
sizes = dict(deit_base=dict())
