"""UPerNet on ADE20K, 160k iterations."""

_base_ = [
    "./models/upernet.py",
    "mmseg::_base_/datasets/ade20k.py",
    "./schedules/adamw_160k.py",
    "mmseg::_base_/default_runtime.py",
    "./runtime.py",
]

train_dataloader = dict(batch_size=2)
