"""Mask R-CNN on COCO, 100 epochs of 64 images a step with large-scale jitter, as ViTDet's (arXiv 2203.16527, appendix):
184,375 iterations, 250 to warm up, a tenth of the rate from 163,889 and a hundredth from 177,546 on.
"""

_base_ = [
    "./models/mask_rcnn.py",
    "./datasets/coco_instance_lsj.py",
    "./adamw_90k.py",
]

train_dataloader = dict(batch_size=1, sampler=dict(type="InfiniteSampler"))
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(optimizer=dict(weight_decay=0.1))
train_cfg = dict(max_iters=184375, val_interval=18437)
default_hooks = dict(checkpoint=dict(interval=18437))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=184375, milestones=[163889, 177546], gamma=0.1),
]
