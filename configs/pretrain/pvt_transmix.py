"""PVT-Small classifier with TransMix, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/pvt_transmix.py

Hardware: 8 GPUs × 128 images, as published for PVT. Recipe: PVT's, pvt.py, with TransMix in place of CutMix (arXiv
2111.09833; its code has DeiT only). Published: 80.5 top-1, against 79.8 of PVT (paper, from memory). Not reproduced
yet.
"""

_base_ = "./pvt.py"

model = dict(
    arch="pvt_small",
    mixing=dict(_delete_=True, type="mixtransfer.TransMix", mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.8),
)
