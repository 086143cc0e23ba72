"""Semantic FPN, RaftMLP-S, ADE20K 512×512.

    tools/convert.py raft_mlp_s.pth checkpoints/raft_mlp_s.safetensors --arch raft_mlp_s
    tools/train.py configs/seg/semantic_fpn_raft_mlp.py

Hardware: 8 GPUs × 4 images, as published. Recipe: okojoalg/raft-mlp,
configs/segmentation/fpn_raftmlp_s_512x512_40k_ade20k.py: AdamW 2e-4, 40k iterations. No score is in the code; the paper
(arXiv 2108.04384) reports weak results. Not reproduced yet.
"""

_base_ = "../_base_/semantic_fpn_40k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.RaftMLP",
        arch="raft_mlp_s",
        init_cfg=dict(checkpoint="checkpoints/raft_mlp_s.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

# Sides are not rounded up to 32, as PVT's are.
test_pipeline = [step for step in _base_.test_pipeline if step.type != "ResizeToMultiple"]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Other sizes (--arch) as their published files have them.
sizes = dict(raft_mlp_m=dict(), raft_mlp_l=dict())
