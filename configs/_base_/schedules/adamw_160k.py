"""AdamW over 160k iterations of 16 images, as Swin's segmentors (arXiv 2103.14030, appendix A2.3)."""

_base_ = "mmseg::_base_/schedules/schedule_160k.py"

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="mixtransfer.TransferOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
