"""CaiT-XXS24 classifier with TransMix, ImageNet-1k, 400 epochs.

    tools/train.py configs/pretrain/cait_transmix.py

Hardware: 8 GPUs × 128 images. Recipe: CaiT's, cait.py, with TransMix in place of CutMix, by the attention of the last
class block (arXiv 2111.09833; its code has DeiT only). Published: a gain over CaiT (paper), whose number is not
confirmed here. Not reproduced yet.
"""

_base_ = "./cait.py"

model = dict(
    mixing=dict(_delete_=True, type="mixtransfer.TransMix", mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.8),
)
