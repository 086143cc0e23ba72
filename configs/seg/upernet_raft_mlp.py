"""UPerNet, RaftMLP-S, ADE20K 512×512.

    tools/convert.py raft_mlp_s.pth checkpoints/raft_mlp_s.safetensors --arch raft_mlp_s
    tools/train.py configs/seg/upernet_raft_mlp.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) without drop path,
as its published segmentor, semantic_fpn_raft_mlp.py. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.RaftMLP",
        arch="raft_mlp_s",
        init_cfg=dict(checkpoint="checkpoints/raft_mlp_s.safetensors"),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
