"""FAN-T-Hybrid as a student of a token labeler, the second phase of STL, ImageNet-1k, 360 epochs.

    tools/train.py configs/pretrain/fan_token.py

The labeler is what configs/pretrain/fan_token_labeler.py trains; NVlabs/STL's FAN-T-Hybrid-Teacher goes in its place by
``--cfg-options model.teacher.checkpoint=FILE``. Hardware: 8 GPUs × 128 images, as published. Recipe: NVlabs/STL,
scripts/fan_stl_student/fan_tiny_stl.sh (arXiv 2401.03844): the labeler's, which sees the images without color
operations, erasing and mixing. Published: 79.9 top-1, 58.2 on ImageNet-C (there, README). Not reproduced yet.
"""

_base_ = "./fan_token_labeler.py"

train_pipeline = [
    dict(type="mixtransfer.CleanView", augment=dict(step, type="mmpretrain.RandAugment"))
    if step.type == "RandAugment"
    else dict(step, algorithm_keys=["clean"])
    if step.type == "PackInputs"
    else step
    for step in _base_.train_pipeline
]

model = dict(teacher=dict(arch="fan_hybrid_tiny_token", checkpoint="work_dirs/fan_token_labeler/epoch_360.pth"))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# A student learns from a labeler of its own size.
sizes = {
    f"fan_hybrid_{size}_token": {"model.teacher.arch": f"fan_hybrid_{size}_token"}
    for size in ("small", "base", "large")
}
