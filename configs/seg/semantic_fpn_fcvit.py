"""Semantic FPN, FCViT-B12, ADE20K 512×512.

    tools/convert.py weights://fcvit_b12 checkpoints/fcvit_b12.safetensors --arch fcvit_b12
    tools/train.py configs/seg/semantic_fpn_fcvit.py

Hardware: 8 GPUs × 4 images, as published. Recipe: ma-xu/FCViT,
segmentation/configs/sem_fpn/fpn_fcvit_b12_ade20k_40k.py: AdamW 2e-4, everything decayed, 40k iterations. Published:
43.3 mIoU (there, README). Not reproduced yet.
"""

_base_ = "../_base_/semantic_fpn_40k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.FCViT",
        arch="fcvit_b12",
        init_cfg=dict(checkpoint="checkpoints/fcvit_b12.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

# Layer scales decay too.
optim_wrapper = dict(paramwise_cfg=dict(undecayed=[]))

# Other sizes (--arch) as their published files have them.
sizes = dict(fcvit_b24=dict())
