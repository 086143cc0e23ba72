"""AdamW over 12 epochs of COCO, 16 images a step, as Swin's detectors (arXiv 2103.14030, appendix A2.2)."""

_base_ = "mmdet::_base_/schedules/schedule_1x.py"

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="mixtransfer.TransferOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
