"""AdamW over 90k iterations of COCO, 16 images each and 1000 to warm up, as detectron2's 1x; with the runtime for it.

The recipe adds an endless sampler.
"""

_base_ = ["./schedules/adamw_1x.py", "mmdet::_base_/default_runtime.py", "./runtime.py"]

train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=90000, val_interval=10000)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10000))
log_processor = dict(by_epoch=False)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=90000, milestones=[60000, 80000], gamma=0.1),
]
