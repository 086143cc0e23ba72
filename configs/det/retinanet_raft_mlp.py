"""RetinaNet, RaftMLP-S, COCO, 12 epochs.

    tools/convert.py raft_mlp_s.pth checkpoints/raft_mlp_s.safetensors --arch raft_mlp_s
    tools/train.py configs/det/retinanet_raft_mlp.py

Hardware: 8 GPUs × 2 images, as published. Recipe: okojoalg/raft-mlp,
configs/detection/retinanet_raftmlp_s_fpn_1x_coco.py: AdamW 1e-4, everything decayed. No score is in the code; the paper
(arXiv 2108.04384) reports weak results. Not reproduced yet.
"""

_base_ = "../_base_/retinanet_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.RaftMLP",
        arch="raft_mlp_s",
        init_cfg=dict(checkpoint="checkpoints/raft_mlp_s.safetensors"),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)

# Other sizes (--arch) as their published files have them.
sizes = dict(raft_mlp_m=dict(), raft_mlp_l=dict())
