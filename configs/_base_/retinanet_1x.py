"""RetinaNet on COCO, 12 epochs, everything decayed, as PVT's detectors (whai362/PVT, detection)."""

_base_ = [
    "./models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./schedules/adamw_1x.py",
    "mmdet::_base_/default_runtime.py",
    "./runtime.py",
]

optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(decay_norms=True))
