"""Mask R-CNN, PosMLP-T, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://posmlp_t checkpoints/posmlp_t.safetensors --arch posmlp_t
    tools/train.py configs/det/mask_rcnn_posmlp.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretraining; no dense recipe is published for PosMLP (arXiv 2207.07284). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.PosMLP",
        arch="posmlp_t",
        # Otherwise no map sees beyond 224 pixels.
        shift_windows=True,
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/posmlp_t.safetensors"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
