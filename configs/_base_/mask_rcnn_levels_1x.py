"""Mask R-CNN on COCO, 12 epochs as Swin's, for backbones of one stride.

Instead of FPN, mmseg's neck rescales the last map to strides 4 to 64: ViTDet (arXiv 2203.16527, table 1) finds such a
pyramid as good.
"""

_base_ = "./mask_rcnn_swin_1x.py"

model = dict(
    neck=dict(_delete_=True, type="mmseg.MultiLevelNeck", out_channels=256, scales=[4, 2, 1, 0.5, 0.25]),
)
