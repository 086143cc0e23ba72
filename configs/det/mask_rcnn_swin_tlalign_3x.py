"""Mask R-CNN, Swin-T pretrained with TL-Align, COCO, 36 epochs with multi-scale training and crops.

    tools/convert.py best_checkpoint.pth checkpoints/swin_tiny_tlalign.safetensors --arch swin_tiny
    tools/train.py configs/det/mask_rcnn_swin_tlalign_3x.py

Hardware: 8 GPUs × 2 images, as published. Recipe: Swin, arXiv 2103.14030, appendix A2.2, 3x; the augmentation is DETR's
(arXiv 2005.12872, section 4). Published: 46.0 box AP, 41.6 mask AP with ImageNet-1k weights
(SwinTransformer/Swin-Transformer-Object-Detection, README). Not reproduced yet.
"""

_base_ = "./mask_rcnn_swin_tlalign.py"

sides = [(side, 1333) for side in range(480, 801, 32)]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomChoice",
        transforms=[
            [dict(type="RandomChoiceResize", scales=sides, keep_ratio=True)],
            [
                dict(type="RandomChoiceResize", scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
                dict(type="RandomChoiceResize", scales=sides, keep_ratio=True),
            ],
        ],
    ),
    dict(type="PackDetInputs"),
]

model = dict(backbone=dict(drop_path_rate=0.2))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
