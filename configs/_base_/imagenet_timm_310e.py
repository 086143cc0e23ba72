"""An ImageNet-1k classifier as timm's train.py trains by default: 300 epochs and 10 at the lowest rate, crops enlarged
by bilinear or bicubic interpolation. (RandAugment's operations draw theirs too in timm; here they are bicubic.)
"""

_base_ = "./imagenet_300e.py"

train_pipeline = [
    dict(type="RandomChoice", transforms=[[dict(step, interpolation=kind)] for kind in ("bilinear", "bicubic")])
    if step.type == "RandomResizedCrop"
    else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=310)
