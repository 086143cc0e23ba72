"""Mask R-CNN, MSG-Transformer-T, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py msg_transformer_tiny.pth checkpoints/msg_transformer_tiny.safetensors --arch msg_transformer_tiny
    tools/train.py configs/det/mask_rcnn_msg_transformer.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; the paper (arXiv 2105.15168) has Cascade Mask R-CNN, cascade_mask_rcnn_msg_transformer.py. Not reproduced
yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.MSGTransformer",
        arch="msg_transformer_tiny",
        # Those of the paper's detectors, from memory; the classifier's exchange nothing beyond 224 pixels.
        shuffles=(4, 4, 8, 4),
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/msg_transformer_tiny.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
