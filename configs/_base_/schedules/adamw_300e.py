"""AdamW over 300 epochs of 1024 images a step, 5 of them to warm up, as DeiT (arXiv 2012.12877, table 9)."""

_base_ = "mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py"

optim_wrapper = dict(
    constructor="mixtransfer.TransferOptimWrapperConstructor",
    # As timm's scripts: nothing of one dimension decays.
    paramwise_cfg=dict(_delete_=True, decay_biases=False),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=5),
]
