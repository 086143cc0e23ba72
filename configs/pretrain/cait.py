"""CaiT-XXS24 classifier, ImageNet-1k, 400 epochs.

    tools/train.py configs/pretrain/cait.py

Hardware: 8 GPUs × 128 images. Recipe: facebookresearch/deit, main.py, DeiT's, over the 400 epochs of CaiT's paper
(arXiv 2103.17239) and tested without a margin (README_cait.md). Published: 77.6 top-1 at 224 pixels without
distillation (there; not confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

test_pipeline = [dict(step, scale=224) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline]

model = dict(
    arch="cait_xxs24",
    backbone=dict(drop_path_rate=0.05),
)
train_dataloader = dict(batch_size=128, sampler=dict(type="RepeatAugSampler"))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=400)
