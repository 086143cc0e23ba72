"""Mask R-CNN, RegionViT-B+ with position convolutions, COCO, 270k iterations, images of up to 896 × 1344.

    tools/convert.py regionvit_base_w14.pth checkpoints/regionvit_base_w14_peg.safetensors --arch regionvit_base_w14_peg
    tools/train.py configs/det/mask_rcnn_regionvit_3x_large.py

Hardware: 8 GPUs × 2 images. Recipe: IBM/RegionViT, detection/configs/mask_rcnn_regionvit_FPN_3x_ms_large.yaml, the
README's "B+ w/ PEG" with a dagger: that of mask_rcnn_regionvit_3x.py on larger images. Published: 49.2 box AP, 44.5
mask AP (there, README). Not reproduced yet.
"""

_base_ = "./mask_rcnn_regionvit_3x.py"

model = dict(
    backbone=dict(
        arch="regionvit_base_w14_peg",
        init_cfg=dict(checkpoint="checkpoints/regionvit_base_w14_peg.safetensors"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

sides = [(1344, side) for side in range(480, 897, 32)]
train_pipeline = [
    dict(
        type="RandomChoice",
        transforms=[
            [
                dict(part, scales=sides) if part.type == "RandomChoiceResize" and len(part.scales) > 3 else part
                for part in branch
            ]
            for branch in step.transforms
        ],
    )
    if step.type == "RandomChoice"
    else step
    for step in _base_.train_pipeline
]
test_pipeline = [dict(step, scale=(1344, 896)) if step.type == "Resize" else step for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
# The dagger stands at this size only.
sizes = dict(_delete_=True)
