"""Cascade Mask R-CNN, Swin-T, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://swin_tiny checkpoints/swin_tiny.safetensors --arch swin_tiny
    tools/train.py configs/det/cascade_mask_rcnn_swin_1x.py

Hardware: 8 GPUs × 2 images, as published. Recipe: SwinTransformer/Swin-Transformer-Object-Detection,
configs/swin/cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_1x_coco.py, there in mixed
precision (--amp): without drop path. Published: 48.1 box AP, 41.7 mask AP with ImageNet-1k weights (there, README). Not
reproduced yet.
"""

_base_ = "./cascade_mask_rcnn_swin.py"

model = dict(backbone=dict(drop_path_rate=0.0))
train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
# Published for this size only.
sizes = dict(_delete_=True)
