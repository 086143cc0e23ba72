"""RetinaNet, RegionViT-S, COCO, 90k iterations.

    tools/convert.py weights://regionvit_small checkpoints/regionvit_small.safetensors --arch regionvit_small
    tools/train.py configs/det/retinanet_regionvit.py

Hardware: 8 GPUs × 2 images, as published. Recipe: IBM/RegionViT, detection/configs/retinanet_regionvit_FPN_1x.yaml and
Base-RetinaNet.yaml (detectron2): AdamW 1e-4, 90k iterations, 1000 of them to warm up. Published: 42.2 box AP (there,
README). Not reproduced yet.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/adamw_90k.py",
]

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
train_pipeline, test_pipeline = (
    [dict(step, scale=(1120, 672)) if step.type == "Resize" else step for step in pipeline]
    for pipeline in (_base_.train_pipeline, _base_.test_pipeline)
)
train_dataloader = dict(sampler=dict(type="InfiniteSampler"), dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The published files are the same for all backbones.
sizes = dict(
    regionvit_small_w14=dict(),
    regionvit_small_w14_peg=dict(),
    regionvit_base=dict(),
    regionvit_base_w14=dict(),
    regionvit_base_w14_peg=dict(),
)
