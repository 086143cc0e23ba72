"""Mask R-CNN on Swin-T: mmdet's heads, our backbone."""

_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"
model = dict(
    backbone=dict(_delete_=True, type="mixtransfer.SwinTransformer", arch="swin_tiny", drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
