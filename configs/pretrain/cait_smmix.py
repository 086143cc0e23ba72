"""CaiT-XXS24 classifier with SMMix, ImageNet-1k, 400 epochs.

    tools/train.py configs/pretrain/cait_smmix.py

Hardware: 8 GPUs × 128 images. Recipe: CaiT's, cait.py, with SMMix in place of CutMix (arXiv 2212.12977; its code has no
CaiT: squares go by the last patch block, regions by the patches behind it). Published: a gain of more than 1 % (there,
abstract). Not reproduced yet.
"""

_base_ = "./cait.py"

model = dict(mixing=dict(_delete_=True, type="mixtransfer.SMMix", alpha=0.8, switch_prob=0.5))
