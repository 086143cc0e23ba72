"""Mask R-CNN, RegionViT-S, COCO, 270k iterations with multi-scale training and crops.

    tools/convert.py weights://regionvit_small checkpoints/regionvit_small.safetensors --arch regionvit_small
    tools/train.py configs/det/mask_rcnn_regionvit_3x.py

Hardware: 8 GPUs × 2 images, as published. Recipe: IBM/RegionViT, detection/configs/mask_rcnn_regionvit_FPN_3x_ms.yaml:
that of mask_rcnn_regionvit.py three times as long, on short sides of 480 to 896; the crops that it asks for by "DETR"
are not in the code, these are DETR's. Published: 46.3 box AP, 42.3 mask AP (there, README). Not reproduced yet.
"""

_base_ = "./mask_rcnn_regionvit.py"

sides = [(1120, side) for side in range(480, 897, 32)]
train_pipeline = [
    dict(
        type="RandomChoice",
        transforms=[
            [dict(type="RandomChoiceResize", scales=sides, keep_ratio=True)],
            [
                dict(type="RandomChoiceResize", scales=[(1333, 400), (1333, 500), (1333, 600)], keep_ratio=True),
                dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
                dict(type="RandomChoiceResize", scales=sides, keep_ratio=True),
            ],
        ],
    )
    if step.type == "Resize"
    else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_iters=270000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=270000, milestones=[210000, 250000], gamma=0.1),
]
