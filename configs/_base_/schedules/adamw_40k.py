"""AdamW over 40k iterations of 32 images, everything decayed, as PVT's segmentors (whai362/PVT, segmentation)."""

_base_ = "mmseg::_base_/schedules/schedule_40k.py"

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="mixtransfer.TransferOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(decay_norms=True),
)
param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=40000)]
