"""A classifier of ImageNet-1k trained on at 384 pixels for 30 epochs, head included: DeiT's augmentation, almost no
decay. The recipe adds rates; tested without a margin, images resized to 384 × 384 as Swin's.
"""

_base_ = "./imagenet_300e.py"

train_pipeline = [dict(step, scale=384) if step.type == "RandomResizedCrop" else step for step in _base_.train_pipeline]
test_pipeline = [
    dict(type="Resize", scale=(384, 384), backend="pillow", interpolation="bicubic")
    if step.type == "ResizeEdge"
    else step
    for step in _base_.test_pipeline
    if step.type != "CenterCrop"
]
model = dict(init_cfg=dict(type="mixtransfer.PretrainedClassifier"))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(weight_decay=1e-8))
train_cfg = dict(max_epochs=30)
