"""RetinaNet, RegionViT-S, COCO, 12 epochs.

    tools/convert.py regionvit_small.pth checkpoints/regionvit_small.safetensors --arch regionvit_small
    tools/train.py configs/det/retinanet_regionvit.py

Hardware: 8 GPUs × 2 images, as published. Recipe: IBM/RegionViT, detection (detectron2): AdamW 1e-4, 90k iterations.
Published: 42.2 box AP (there, README). Not reproduced yet.
"""

_base_ = "../_base_/retinanet_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.RegionViT",
        arch="regionvit_small",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/regionvit_small.safetensors"),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)

# Short side 672, long side at most 1120.
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2]["scale"] = test_pipeline[1]["scale"] = (1120, 672)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(weight_decay=0.05), paramwise_cfg=dict(decay_norms=False))
