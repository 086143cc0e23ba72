"""PVT-Tiny classifier with SMMix, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/pvt_smmix.py

Hardware: 4 GPUs × 256 images, as published. Recipe: ChenMnZ/SMMix, script/train.sh and main.py (arXiv 2212.12977), the
same for PVT and DeiT. Published: 76.4 top-1, against 75.1 of PVT (there, README; arXiv 2102.12122). Not reproduced yet.
"""

_base_ = "./deit_smmix.py"

model = dict(arch="pvt_tiny")
