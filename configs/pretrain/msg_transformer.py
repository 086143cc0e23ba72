"""MSG-Transformer-T classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/msg_transformer.py

Hardware: 8 GPUs × 128 images, as published. Recipe: hustvl/MSG-Transformer, configs/msg_tiny_p4_win7_224.yaml and
configs/config.py (arXiv 2105.15168): Swin's. Published: 82.4 top-1 (there, README). Not reproduced yet.
"""

_base_ = "./swin.py"

model = dict(
    arch="msg_transformer_tiny",
    backbone=dict(drop_path_rate=0.1),
)

# Other sizes (--arch) as their published files have them.
sizes = dict(msg_transformer_small=dict(drop_path=0.3), msg_transformer_base=dict(drop_path=0.5))
