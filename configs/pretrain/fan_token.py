"""FAN-T-Hybrid as a student of a token labeler, the second phase of STL, ImageNet-1k, 360 epochs.

    tools/train.py configs/pretrain/fan_token.py

The labeler is what configs/pretrain/fan_token_labeler.py trains; NVlabs/STL's FAN-T-Hybrid-Teacher goes in its place by
``--cfg-options model.teacher.checkpoint=FILE``. Hardware: 8 GPUs × 128 images, as published. Recipe: NVlabs/STL,
scripts/fan_stl_student/fan_tiny_stl.sh (arXiv 2401.03844): the labeler's, which sees the images without color
operations, erasing and mixing. Published: 79.9 top-1, 58.2 on ImageNet-C (there, README). Not reproduced yet.
"""

_base_ = "./fan_token_labeler.py"

train_pipeline = _base_.train_pipeline
train_pipeline[3] = dict(type="mixtransfer.CleanView", augment=dict(train_pipeline[3], type="mmpretrain.RandAugment"))
train_pipeline[5]["algorithm_keys"] = ["clean"]

model = dict(teacher=dict(arch="fan_hybrid_tiny_token", checkpoint="work_dirs/fan_token_labeler/epoch_360.pth"))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
