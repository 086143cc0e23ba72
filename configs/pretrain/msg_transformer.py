"""MSG-Transformer-T classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/msg_transformer.py

Hardware: 8 GPUs × 128 images, as published. Recipe: hustvl/MSG-Transformer (arXiv 2105.15168): Swin's. Published: 82.4
top-1 (there, README). Not reproduced yet.
"""

_base_ = "./swin.py"

model = dict(
    arch="msg_transformer_tiny",
    backbone=dict(drop_path_rate=0.1),
)
