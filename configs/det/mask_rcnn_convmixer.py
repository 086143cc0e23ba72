"""Mask R-CNN, ConvMixer-1024/20, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py convmixer_1024_20.pth.tar checkpoints/convmixer.safetensors --arch convmixer_1024_20_ks9_p14
    tools/train.py configs/det/mask_rcnn_convmixer.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) without drop path, as
pretrained; ConvMixer's paper (arXiv 2201.09792) has no detector. The last map, of stride 14, is rescaled to strides 4
to 64; BatchNorm over all GPUs. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_levels_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.ConvMixer",
        arch="convmixer_1024_20_ks9_p14",
        output_norm="layer",
        out_indices=(19,),
        init_cfg=dict(checkpoint="checkpoints/convmixer.safetensors"),
    ),
    neck=dict(in_channels=[1024], scales=[14 / 4, 14 / 8, 14 / 16, 14 / 32, 14 / 64]),
)
sync_bn = "torch"
