"""Mask R-CNN, ConvNeXt-T of timm, COCO, 12 epochs with multi-scale training and crops.

    tools/train.py configs/det/mask_rcnn_timm.py

Hardware: 8 GPUs × 2 images. Recipe: the values of mask_rcnn_swin, so that any network of timm with maps of several
strides stands beside ours as a control: --arch timm/resnet50.a1_in1k. Plain ViTs have
mask_rcnn_timm_vit. No score is published for this recipe.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.TimmBackbone",
        arch="timm/convnext_tiny.fb_in1k",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="timm://convnext_tiny.fb_in1k"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
