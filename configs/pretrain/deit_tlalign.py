"""DeiT-T classifier with TL-Align, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/deit_tlalign.py

Hardware: 8 GPUs × 128 images, as published. Recipe: Euphoria16/TL-Align, train_deit_small_tla.sh and main_tla.py (arXiv
2210.06455): DeiT's, with boxes of tokens in place of Mixup and CutMix. Published: 73.2 top-1, against 72.2 of DeiT
(there, README). Not reproduced yet.
"""

_base_ = "./deit.py"

model = dict(mixing=dict(_delete_=True, type="mixtransfer.TLAlign", alpha=1.0), cell_size=16)
