"""Cascade Mask R-CNN, MSG-Transformer-T, COCO, 36 epochs with multi-scale training and crops.

    tools/convert.py msg_transformer_tiny.pth checkpoints/msg_transformer_tiny.safetensors --arch msg_transformer_tiny
    tools/train.py configs/det/cascade_mask_rcnn_msg_transformer.py

Hardware: 8 GPUs × 2 images. Recipe: Swin's (SwinTransformer/Swin-Transformer-Object-Detection), the paper's own
settings not being in the code. Published: 51.4 box AP, 44.6 mask AP (hustvl/MSG-Transformer, README). Not reproduced
yet.
"""

_base_ = "../_base_/cascade_mask_rcnn_3x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.MSGTransformer",
        arch="msg_transformer_tiny",
        # Those of the paper's detectors, from memory; the classifier's exchange nothing beyond 224 pixels.
        shuffles=(4, 4, 8, 4),
        output_norm="layer",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/msg_transformer_tiny.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
