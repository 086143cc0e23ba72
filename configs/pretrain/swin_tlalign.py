"""Swin-T classifier with TL-Align, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/swin_tlalign.py

Hardware: 8 GPUs × 128 images. Recipe: Swin's, swin.py, with token boxes in place of Mixup and CutMix, as TL-Align
trains (arXiv 2210.06455). Published: 81.4 top-1, against 81.2 without alignment (Euphoria16/TL-Align, README). Not
reproduced yet.
"""

_base_ = "./swin.py"

model = dict(
    # Boxes are drawn on cells of 32 pixels, the tokens of the last stage.
    cell_size=32,
    mixing=dict(_delete_=True, type="mixtransfer.TLAlign", alpha=1.0),
)
