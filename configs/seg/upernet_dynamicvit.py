"""UPerNet, DynamicViT from DeiT-S, ADE20K 512×512.

    tools/convert.py dynamicvit_deit-s.pth checkpoints/dynamicvit_deit_s_07.safetensors --arch dynamicvit_deit_s_07
    tools/train.py configs/seg/upernet_dynamicvit.py

Hardware: 8 GPUs × 2 images. Recipe: ours, mmseg's for DeiT (upernet_deit.py) without drop path, as pretrained; no dense
code or recipe is published for DynamicViT (arXiv 2106.02034). In training every token goes on and the decisions, which
mask the attention, learn from the segmentor's loss alone; evaluation keeps 70, 49 and 34 % of the tokens, and a dropped
one holds its last value in the maps. Not reproduced yet.
"""

_base_ = "../_base_/upernet_levels_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.DynamicViT",
        arch="dynamicvit_deit_s_07",
        output_norm="layer",
        init_cfg=dict(checkpoint="checkpoints/dynamicvit_deit_s_07.safetensors"),
    ),
    neck=dict(in_channels=[384, 384, 384, 384], out_channels=384),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
